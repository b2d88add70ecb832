"""Training: the loop, optimisers, schedules, monitors, loggers."""
