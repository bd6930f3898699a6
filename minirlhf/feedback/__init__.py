"""Who ranks responses: a person (page), an AI (judge), or a simulated annotator (rankings)."""
