"""`make bench`: speed and memory, side by side with what a user would script instead. Reported, never asserted."""
