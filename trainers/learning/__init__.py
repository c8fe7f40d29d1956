"""How a student learns: batches, distillation, joint fine-tuning."""
