"""Publishing: export of the encoder, model card, push to the Hugging Face Hub."""
