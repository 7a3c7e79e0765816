"""The control plane: takes jobs, keeps their records, shows, exports and diagnoses them."""
