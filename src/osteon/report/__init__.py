"""The page people look at: one HTML file that works offline, on a phone, in light and dark, and in a screen reader."""
