"""What quantization does to reasoning models: plan, quantize, serve, score, record."""
