"""What all data sets share: their splits, and the places where pretrained networks lie."""
