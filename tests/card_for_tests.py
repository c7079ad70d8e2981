# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""A tiny Trainer that writes the model card, also in processes of its own."""

import os

from training_for_tests import make_trainer, objective_model

from modeling_pixclip import ModelCardCallback


def with_card(folder, details=None, model=None, callbacks=(), **arguments):
    trainer = make_trainer(folder, model or objective_model(), callbacks=callbacks, **{"max_steps": 2, **arguments})
    card = ModelCardCallback(details)
    card.add_to(trainer)
    return trainer, card


def train_in_process(folder):
    """Trains with the others, and then has each process ask for a card in a folder of its own."""
    # For accelerate, which finds the processes joined.
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    trainer, card = with_card(folder / "run", batch_size=2)
    trainer.train()
    card.write(str(folder / f"of_{trainer.args.process_index}"))
    trainer.model_wrapped = trainer.model
    trainer.accelerator.free_memory()
