"""A search over trainings: what is drawn, what is remembered, who is ended early, and what won."""
