"""TMR, settings: the paper's model, and a switch for each reading of the released code."""

from dataclasses import dataclass
from typing import ClassVar, Literal, Self

from finetune.methods.profiles import Profiled, Profiles
from shards.files import InputError
from shards.options import positive


@dataclass(frozen=True, kw_only=True)
class TmrConfig(Profiled):
    """Settings of TMR."""

    profiles: ClassVar[Profiles] = {
        "fixed": {
            "phrases": "entities",
            "phrase_encoding": "wordpiece",
            "mask_padding": True,
            "mask_absent": True,
            "whole_norm": "imagenet",
            "one_pass": True,
            "tagging": "words",
            "token_features": "shared",
        },
        "legacy": {
            "phrases": "entities",
            "phrase_encoding": "lookup6",
            "mask_padding": False,
            "mask_absent": False,
            "whole_norm": "bgr255",
            "one_pass": False,
            "tagging": "pieces",
            "token_features": "positions",
        },
    }
    for_entities: ClassVar[Profiles] = {  # their released code is another
        "fixed": {"phrases": "sentence"},
        "legacy": {
            "phrases": "sentence",
            "phrase_encoding": "wordpiece5",
            "whole_norm": "imagenet",
        },
    }
    version: Literal["v2", "v1"] = "v2"
    """v1 (relations): the upload of July 2023, without pooled shortcuts and the layers on top."""
    vision: str = "resnet50.a1_in1k"
    """timm ResNet, or a directory in timm's layout; init: the vision tower of --init's fusion model
    and its picture size; none: no vision tower, for --images none."""
    vision_random: bool = False
    """Draw the vision tower's weights at random also where the text tower's are loaded."""
    vision_width: int = 64
    """Channels of the vision tower's first stage; other than 64 only with random weights."""
    freeze: bool = False
    """The vision tower stays as it is, batch statistics included, so each picture is looked at
    once. false: it learns at optim.lr, at optim.head_lr if drawn at random."""
    image_size: int = 224
    """Side of pictures and regions in pixels."""
    resize: Literal["squash", "center_crop"] = "squash"
    """How pictures and regions become squares (released: squash, and center_crop for regions;
    entities: center_crop for all)."""
    regions: int = 3
    """Regions a source, best first; 0: none."""
    generated: str = "diffusion_pic"
    """Folder in --data of generated pictures, {split}/<img_id>; none: without that source."""
    generated_boxes: Literal["none", "community"] = "none"
    """Regions of generated pictures. community (relations): TMR's boxes, which leak the label."""
    phrases: Literal["entities", "sentence", "community"] | None = None
    """What regions attend to. entities (relations): the words of head and tail. sentence (entity
    recognition): the whole text. community: TMR's files; for relations they add entity types that
    tell the label, for entities they hold nouns of the text."""
    mask_entity: bool = False
    """Relations: one token in the place of each entity's words (phrases go on naming them)."""
    scores: str = "none"
    """Folder in --data of {split}_weight_{strong,weak}.txt and the same after dif_ (TMR's: txt; for
    entities "."); none: every score is a half."""
    pool: Literal["sum", "mean"] = "sum"
    """Over a picture's positions and over regions; sums of many may saturate the tanh behind."""
    dropout: float = 0.5
    """Relations: before and after the last hidden layer."""
    tag_dropout: float = 0.0
    """Entities: before the emission layer (the released code makes one, unused)."""
    tagging: Literal["words", "pieces"] | None = None
    """Entities. words (fixed): a CRF over words. pieces (legacy): over word pieces, with tags for
    later pieces, [CLS] and [SEP]."""
    token_features: Literal["shared", "positions"] | None = None
    """Entities: what a source tells the word pieces. shared (fixed): all the same, texts of any
    length. positions (legacy): each of 70 positions through a layer of its own."""
    mask_padding: bool | None = None
    """Leave padded word pieces out of the cross attention. legacy: attends to all 128 (70)."""
    mask_absent: bool | None = None
    """Leave absent pictures and regions out. legacy: squares of the mean colour."""
    whole_norm: Literal["imagenet", "bgr255"] | None = None
    """Whole pictures: as the vision tower was trained, or (legacy, relations) blue-green-red, 0 to
    255."""
    phrase_encoding: Literal["wordpiece", "wordpiece5", "lookup6"] | None = None
    """wordpiece: tokenised. wordpiece5 (legacy, entities): cut or padded to five, all attended to.
    lookup6 (legacy, relations): six whole words by vocabulary, no mask; mostly unknown ones."""
    one_pass: bool | None = None
    """All pictures of a batch through the vision tower at once; legacy: four passes, each with its
    own batch statistics."""

    def __post_init__(self) -> None:
        positive("model.", vision_width=self.vision_width, image_size=self.image_size)

    def settled(self, kind: str = "relation") -> Self:
        """As `Profiled.settled`.

        Raises:
            InputError: a choice that entity recognition cannot have.
        """
        if kind == "entities":
            self.check_entities()
        return super().settled(kind)

    def check_entities(self) -> None:
        """InputError for what would give the answer away, or is not to be had."""
        if self.phrases == "entities":
            raise InputError(
                "--model.phrases entities: which words are entities is what this task asks; choose "
                "sentence or community"
            )
        if self.mask_entity:
            raise InputError(
                "--model.mask_entity: which words are entities is what this task asks; leave it off"
            )
        if self.generated_boxes == "community":
            raise InputError(
                "--model.generated_boxes community: not for entities, where two of the six "
                "published files hold words, not boxes; leave it at none"
            )
        if self.version == "v1":
            raise InputError("--model.version v1: it is of relations only; leave it at v2")
