"""What to do about it: score, plan, substitute, clean up, verify."""
