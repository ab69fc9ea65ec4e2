"""What programs that were written for bert-as-service import and run."""
