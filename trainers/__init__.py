"""How a student learns: corpora, teacher, distillation, joint fine-tuning, scores."""
