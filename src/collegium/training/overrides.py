"""The private methods of `transformers.Trainer` that `DistillationTrainer` replaces, and why.

A private method may change in any release, and the upper bound of `transformers` is open. So each one is listed
with the parameters that it had when it was replaced; `tests/training/test_overrides.py` compares them with the
release that is installed. Add a line here for each new override, and take one out when upstream offers a public
way.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Override:
    """One replaced method.

    Attributes:
        parameters: Its parameters in `transformers.Trainer`, without `self`, as they are written in a signature.
        reason: What upstream's own version would get wrong.
    """

    parameters: str
    reason: str


PRIVATE_OVERRIDES: Mapping[str, Override] = {
    "_get_num_items_in_batch": Override(
        "batch_samples, device",
        "upstream gives one count of labels; the loss is divided by predicted positions, none of which crosses a "
        "border between documents, and feature terms by positions of text, both over all ranks",
    ),
    "_prepare_for_training": Override(
        "max_steps, train_dataloader, resume_from_checkpoint",
        "upstream hands callbacks the module that is trained; those of others want a model of transformers, which "
        "the student in it is",
    ),
    "_get_grad_norm": Override(
        "model, grad_norm=None",
        "it is the last call before the update, hence the only place to stop on a gradient that is not finite "
        "with the weights still intact, and to hand a finished step's means to what follows the training",
    ),
    "_get_train_sampler": Override(
        "train_dataset=None",
        "upstream shuffles each epoch by a generator; the order here is a function of seed, epoch and position, "
        "so that a resumed run sees what an uninterrupted one would have seen",
    ),
    "_init_training_state": Override(
        "max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial",
        "upstream takes all epochs to be equally long when it finds the place of a resumed run; here a step that "
        "does not fit into one is filled up from the next",
    ),
    "_save_checkpoint": Override(
        "model, trial",
        "upstream pickles the optimizer and leaves a torn folder when it is killed; here they are whole or absent",
    ),
    "_load_callback_state": Override(
        "",
        "upstream restores callbacks only if asked to, and then with the settings of the checkpoint; here they go "
        "on with what they remember, and steps between logs and checkpoints are those of the arguments",
    ),
    "_load_from_checkpoint": Override(
        "resume_from_checkpoint, model=None",
        "reads what `_save_checkpoint` wrote, after comparing it with its manifest",
    ),
    "_load_best_model": Override(
        "",
        "upstream looks for a whole model in the best checkpoint; it holds what was trained, by our own names",
    ),
    "_load_optimizer_and_scheduler": Override(
        "checkpoint",
        "reads optimizer, scheduler, scaler and domain mixing from safetensors and JSON",
    ),
    "_load_scaler": Override(
        "checkpoint",
        "upstream would look for a file of its own; the scaler is loaded with the optimizer",
    ),
    "_load_rng_state": Override(
        "checkpoint",
        "upstream reads a file of `torch.save` for each rank; here one safetensors file holds the states of all",
    ),
    "_save": Override(
        "output_dir=None, state_dict=None",
        "the model that is trained holds projections, routers and adapters; a plain student is what users load",
    ),
}
