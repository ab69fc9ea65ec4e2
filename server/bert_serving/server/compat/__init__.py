"""The modules and commands that programs written for bert-as-service use."""
