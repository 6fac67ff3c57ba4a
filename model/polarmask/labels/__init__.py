"""What each location of the network learns: made, stored, mirrored."""
