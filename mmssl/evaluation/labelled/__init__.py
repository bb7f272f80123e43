"""What is measured with labels: classification by prompts, by neighbours, by probes of frozen features, by fine-tuned copies."""
