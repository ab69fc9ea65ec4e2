"""bert-serving-doctor: says what this machine is, what a server would choose on it and why, and what to change."""
