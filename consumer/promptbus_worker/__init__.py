"""The promptbus worker: Kafka requests in, Triton inference, Kafka replies out."""
