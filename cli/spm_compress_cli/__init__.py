"""Floor 7: the command line. Parses, calls one library function, shows its result; no mathematics."""
