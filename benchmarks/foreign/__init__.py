"""Pictures that are no dermoscopy, and how many of them a model file flags."""
