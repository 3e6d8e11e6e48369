"""promptbus: publish prompts to Kafka, read answers from Kafka."""
