"""What models are trained on: source -> rows -> canonical shape -> template -> tokens -> packed sequences."""
