"""The server's batching without a server: AsyncEncoder, for programs that have an event loop of their own."""
