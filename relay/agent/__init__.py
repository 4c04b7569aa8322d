"""The agent: a cluster's side of the relay. Holds nothing that it cannot read again."""
