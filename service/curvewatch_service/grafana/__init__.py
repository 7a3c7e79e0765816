"""Publishing to a Grafana: what is there, what should be there, and the way from one to the other."""
