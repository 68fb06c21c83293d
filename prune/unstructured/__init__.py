"""Weights and neurons (Shi et al., ICLR 2024): soft masks, penalty, search, fine-tuning."""
