"""A progress bar over optimiser steps that also suits a log file."""

from tqdm import tqdm
from transformers import TrainerCallback


class StepBar(TrainerCallback):
    """Bar over optimiser steps with the last loss."""

    def __init__(self, label: str = "train") -> None:
        self.label, self.bar = label, None

    def on_train_begin(self, args, state, control, **kwargs):
        """Open the bar."""
        if state.is_world_process_zero:
            self.bar = tqdm(total=state.max_steps, desc=self.label, unit="step", mininterval=1.0)

    def on_step_end(self, args, state, control, **kwargs):
        """Move the bar."""
        if self.bar is not None:
            self.bar.update(1)

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Show the last loss."""
        if self.bar is not None and logs and "loss" in logs:
            self.bar.set_postfix(loss=f"{float(logs['loss']):.3f}", refresh=False)

    def on_train_end(self, args, state, control, **kwargs):
        """Close the bar."""
        if self.bar is not None:
            self.bar.close()
