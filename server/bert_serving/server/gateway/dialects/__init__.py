"""One file for each family of HTTP routes that other servers made known."""
