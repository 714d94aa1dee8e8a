"""What is measured of a trained network, kept in one store; one measurement as a result that is printed and logged."""
