"""What runs on the cluster: exact distributed training, and the contract that the service shares with it."""
