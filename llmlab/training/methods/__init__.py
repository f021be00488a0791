"""One file a method: what it trains on, with which model, by which loss."""
