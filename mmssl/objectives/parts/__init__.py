"""What several objectives are made of: pairs, views, teachers' targets, clusterings, quantizers, masks of words."""
