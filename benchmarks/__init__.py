"""Speed, memory and claims, measured by commands anyone can run; their output is kept in docs/evidence."""
