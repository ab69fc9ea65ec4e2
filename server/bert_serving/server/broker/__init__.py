"""The broker: owns every request from its arrival to its reply."""
