"""The service: requests join the chain at any step."""
