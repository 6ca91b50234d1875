"""What a run needs before its first step: its configuration on disk, model, tokenizer, teacher."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal

import torch
from transformers import PreTrainedTokenizerBase

from pretrain import distributed
from pretrain.checkpoint import hub
from pretrain.checkpoint.checksums import check_member, write_checksums
from pretrain.checkpoint.directory import ModelDirectory
from pretrain.checkpoint.initial import initial_architecture, initial_encoder
from pretrain.checkpoint.remote import resolve
from pretrain.checkpoint.strict import CONFIG_NAME, WEIGHTS_NAME
from pretrain.config import PretrainConfig
from pretrain.data.pairs import PairDataset
from pretrain.data.tokenizer import LEARNERS
from pretrain.model.fusion_encoder import FusionEncoder
from pretrain.model.promu import HeadsConfig, Promu
from pretrain.model.stored import VisionStore
from pretrain.prompter.bank import ENTITY_TEMPLATES, RELATION_TEMPLATES, PromptBank, encode_prompts
from pretrain.prompter.load import Prompter, load_prompter
from pretrain.prompter.online import OnlineTeacher
from shards.files import CommonError, InputError, digest, replace_folder
from shards.json_files import write_json
from shards.nouns import read_vocabulary
from shards.redact import without_secrets
from shards.relations import relation_labels
from shards.schema import COLUMN_NAME, OBJECTS, TEACHER
from shards.stream import ShardReader


def settle(config: PretrainConfig) -> tuple[PretrainConfig, ModelDirectory | None]:
    """What the configuration leaves open is taken from `model.init`, resolved here and once.

    Raises:
        CommonError: the directory is no model of ours, or contradicts what the configuration says.
    """
    if not config.model.init:
        return config, None
    try:
        directory = ModelDirectory.open(config.model.init)
        architecture = initial_architecture(directory, config.model.stated())
        if config.data.keep_patches < 1 and (timm := architecture.vision_config):
            raise InputError(
                f"data.keep_patches: model.init {directory} has a picture tower of timm, "
                f"{timm['architecture']}, which looks at whole pictures: leave it at 1"
            )
        return replace(config, model=replace(config.model, **asdict(architecture))), directory
    except (InputError, ValueError) as error:
        raise CommonError(str(error)) from error


def build_model(
    config: PretrainConfig,
    reader: ShardReader,
    run_dir: Path,
    init: ModelDirectory | None,
    *,
    resumes: bool,
) -> tuple[Promu, PreTrainedTokenizerBase]:
    """(model, tokenizer), identical on every rank; `run_dir/architecture` describes both.

    Args:
        init: what `settle` found. resumes: there is a checkpoint, and so a tokenizer of the run.
    """
    tokenizer = run_tokenizer(config, reader, run_dir, init, resumes=resumes)
    heads = HeadsConfig(
        itm=bool(config.loss.itm),
        num_entities=len(object_classes(config)) if config.loss.coe else 0,
        num_relations=len(relation_labels(config.prompter.relations)) if config.loss.cir else 0,
    )
    architecture = config.model.architecture()
    if init:
        if len(tokenizer) > architecture.vocab_size:
            raise CommonError(
                f"model.init {init}: {architecture.vocab_size} word pieces in its table, "
                f"{len(tokenizer)} in the tokenizer"
            )
        encoder, notes = initial_encoder(init, architecture)
        if distributed.is_main():
            print(without_secrets(f"model.init {init}: {notes}"), flush=True)
    else:  # few captions yield fewer word pieces than were asked for
        encoder = FusionEncoder(replace(architecture, vocab_size=len(tokenizer)))
    # Before the optimizer is built: it takes what requires a gradient, and nothing else.
    for tower in config.optim.freeze if config.optim.freeze_steps is None else ():
        getattr(encoder, tower).requires_grad_(False)
    if config.engine.activation_checkpointing:
        encoder.checkpoint_activations()
    if config.engine.compile:
        encoder.compile_layers()
    model = Promu(encoder, heads, config.loss)
    if config.data.fixed_views and "vision" in config.optim.freeze:
        model.vision_store = VisionStore()
    content = model.released_config()

    def write() -> None:
        write_json(run_dir / "architecture" / CONFIG_NAME, content)
        write_checksums(run_dir / "architecture")

    distributed.on_main(write)
    return model, tokenizer


def run_tokenizer(
    config: PretrainConfig,
    reader: ShardReader,
    run_dir: Path,
    init: ModelDirectory | None,
    *,
    resumes: bool,
) -> PreTrainedTokenizerBase:
    """The run's tokenizer: of `model.tokenizer`, of `model.init`, or learned from the captions.

    It lies in `run_dir/architecture`, written whole by the main process: anew at each start until
    there is a checkpoint, for a start that failed may have had other captions or settings.
    """
    folder = run_dir / "architecture"

    def make() -> PreTrainedTokenizerBase:
        own = hub.load_tokenizer(init) if init else None
        if own and config.model.tokenizer in LEARNERS:
            raise InputError(
                f"model.tokenizer {config.model.tokenizer}: model.init {init} has its own, whose "
                "numbers its word table is read by"
            )
        if config.model.tokenizer and config.model.tokenizer not in LEARNERS:
            tokenizer = hub.load_tokenizer(resolve(config.model.tokenizer))
            if own and own.get_vocab() != tokenizer.get_vocab():
                raise InputError(
                    f"model.tokenizer {config.model.tokenizer}: another vocabulary than that of "
                    f"model.init {init}, whose word table is read by position"
                )
            return tokenizer
        if own:
            return own
        # A set, sorted: the vocabulary must not depend on the order of shards.
        shards = range(len(reader.index.shards))
        captions = {caption for number in shards for caption in reader.captions(number)}
        learn = LEARNERS[config.model.tokenizer or "wordpiece"]
        return learn(sorted(captions), config.model.vocab_size)

    def write() -> None:
        # A checkpoint's word table is read by the numbers that this file gives.
        if resumes and (own := sorted(folder.glob("tokenizer*"))):
            for path in own:
                check_member(path, strictly=True)
            return
        tokenizer = make()
        with replace_folder(folder) as temporary:
            tokenizer.save_pretrained(temporary)

    distributed.on_main(write)
    return hub.load_tokenizer(folder)


def check_teacher(reader: ShardReader, prompter: str) -> None:
    """Refuse a teacher column of another prompter, or of other objects, than this run's.

    Raises:
        InputError: its features and this run's prompts, or boxes, do not belong together.
    """
    made = reader.columns[TEACHER].provenance
    weights_sha256 = digest(resolve(prompter) / WEIGHTS_NAME)
    if made.get("prompter_sha256") != weights_sha256:
        raise InputError(
            f"{reader.location}: its teacher column was written by {made.get('prompter')}, not by "
            f"prompter.source {prompter}; run `python -m pretrain label` with that prompter"
        )
    objects = Path(reader.location) / OBJECTS / COLUMN_NAME
    if objects.is_file() and made.get("objects_sha256") != digest(objects):
        raise InputError(
            f"{reader.location}: its objects changed after its teacher column was written; run "
            "`python -m pretrain label` again"
        )


def object_classes(config: PretrainConfig) -> list[str]:
    """Classes of the COE head."""
    if config.prompter.object_labels == "relations":
        return relation_labels(config.prompter.relations)
    assert config.prompter.entities  # the configuration asks for it, and for the source below
    return read_vocabulary(config.prompter.entities)


def prepare_teacher(
    model: Promu, config: PretrainConfig, device: torch.device
) -> OnlineTeacher | None:
    """Load the frozen prompter; the model gets its prompts, and it stays only if it is to look."""
    settings = config.prompter
    assert settings.source
    prompter = load_prompter(settings.source)
    encode_banks(model, prompter, config, device)
    if settings.mode == "cached":
        return None
    view: Literal["clean", "student"] = "clean" if settings.mode == "online_clean" else "student"
    return OnlineTeacher(prompter, view, settings.erase_object, device, config.engine.precision)


def encode_banks(
    model: Promu, teacher: Prompter, config: PretrainConfig, device: torch.device
) -> None:
    """Give the model the encoded prompts of its frozen prompter."""
    settings = config.prompter
    encoder, tokenizer = teacher.encoder.to(device), teacher.tokenizer
    temperature = settings.temperature or teacher.temperature

    def encoded(vocabulary: list[str], templates: list[str]) -> PromptBank:
        bank = encode_prompts(encoder, tokenizer, temperature, vocabulary, templates)
        return _told_apart(bank, vocabulary)

    relations = [RELATION_TEMPLATES[key] for key in settings.relation_prompts]
    if config.loss.coe:
        entities = [ENTITY_TEMPLATES[key] for key in settings.entity_prompts]
        # The released code reads objects by relation prompts: a slip, repeated where asked for.
        templates = relations if settings.object_labels == "relations" else entities
        model.entity_bank = encoded(object_classes(config), templates)
    if config.loss.cir:
        model.relation_bank = encoded(relation_labels(settings.relations), relations)


def _told_apart(bank: PromptBank, vocabulary: list[str]) -> PromptBank:
    """The bank, unless all its prompts read alike, as those of unknown words do."""
    if len(vocabulary) > 1 and torch.allclose(bank.features, bank.features[:1], atol=1e-5):
        raise CommonError(
            f"the prompts of {', '.join(vocabulary[:3])} … are all the same to the prompter: its "
            "tokenizer knows none of these words; give another vocabulary or prompter"
        )
    return bank


def pair_dataset(
    reader: ShardReader,
    tokenizer: PreTrainedTokenizerBase,
    config: PretrainConfig,
    *,
    augment: bool,
    teacher: OnlineTeacher | None = None,
) -> PairDataset:
    """The data set over `reader` that fits this run's model and its online teacher."""
    return PairDataset(
        reader,
        tokenizer,
        config.data,
        image_size=config.model.image_size,
        patch_size=config.model.patch_size,
        seed=config.seed,
        augment=augment,
        teacher_size=teacher.encoder.config.image_size
        if teacher and teacher.view == "clean"
        else 0,
    )
