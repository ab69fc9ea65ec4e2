"""What programs written for bert-as-service import and run."""
