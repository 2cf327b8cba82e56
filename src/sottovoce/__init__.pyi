"""The types of the public names. `__init__.py` imports each on its first use; a test compares the two lists."""

from sottovoce.api import (
    Evaluation as Evaluation,
)
from sottovoce.api import (
    evaluate as evaluate,
)
from sottovoce.api import (
    export as export,
)
from sottovoce.api import (
    fit_confidence as fit_confidence,
)
from sottovoce.api import (
    inspect as inspect,
)
from sottovoce.api import (
    load as load,
)
from sottovoce.api import (
    make_plan as make_plan,
)
from sottovoce.api import (
    open_recognizer as open_recognizer,
)
from sottovoce.api import (
    quantize as quantize,
)
from sottovoce.api import (
    score as score,
)
from sottovoce.api import (
    transcribe as transcribe,
)
from sottovoce.api import (
    verify as verify,
)
from sottovoce.backends.backend import Backend as Backend
from sottovoce.backends.export import Export as Export
from sottovoce.backends.registry import (
    BACKENDS as BACKENDS,
)
from sottovoce.backends.registry import (
    target_named as target_named,
)
from sottovoce.bench import (
    BenchOutcome as BenchOutcome,
)
from sottovoce.bench import (
    run_bench as run_bench,
)
from sottovoce.checkpoint.manifest import (
    ConfidenceRecord as ConfidenceRecord,
)
from sottovoce.checkpoint.manifest import (
    Manifest as Manifest,
)
from sottovoce.checkpoint.manifest import (
    store_confidence as store_confidence,
)
from sottovoce.core.affine import Affine as Affine
from sottovoce.core.number_format import NumberFormat as NumberFormat
from sottovoce.core.qtensor import QuantizedTensor as QuantizedTensor
from sottovoce.data.augment import Augmentation as Augmentation
from sottovoce.data.dataset import (
    DataSet as DataSet,
)
from sottovoce.data.dataset import (
    Utterance as Utterance,
)
from sottovoce.data.load import load_data as load_data
from sottovoce.errors import SottovoceError as SottovoceError
from sottovoce.evaluation.confidence import (
    ConfidenceScaling as ConfidenceScaling,
)
from sottovoce.evaluation.confidence import (
    FittedConfidence as FittedConfidence,
)
from sottovoce.evaluation.confidence import (
    WordConfidence as WordConfidence,
)
from sottovoce.evaluation.confidence import (
    word_confidences as word_confidences,
)
from sottovoce.evaluation.fallback import Fallback as Fallback
from sottovoce.evaluation.recognizer import Recognizer as Recognizer
from sottovoce.evaluation.transcribe import Transcription as Transcription
from sottovoce.evaluation.transcripts import Transcript as Transcript
from sottovoce.evaluation.wer import Score as Score
from sottovoce.models.speech_model import SpeechModel as SpeechModel
from sottovoce.quantization.layer import LayerReport as LayerReport
from sottovoce.quantization.methods import (
    AWQ as AWQ,
)
from sottovoce.quantization.methods import (
    FADE as FADE,
)
from sottovoce.quantization.methods import (
    GPTQ as GPTQ,
)
from sottovoce.quantization.methods import (
    METHODS as METHODS,
)
from sottovoce.quantization.methods import (
    QEP as QEP,
)
from sottovoce.quantization.methods import (
    RTN as RTN,
)
from sottovoce.quantization.methods import (
    method_named as method_named,
)
from sottovoce.quantization.pipeline import QuantizedModel as QuantizedModel
from sottovoce.quantization.plan import (
    Plan as Plan,
)
from sottovoce.quantization.plan import (
    PlannedLayer as PlannedLayer,
)
from sottovoce.quantization.plan_file import (
    read_plan as read_plan,
)
from sottovoce.quantization.plan_file import (
    write_plan as write_plan,
)
from sottovoce.quantization.recipe import (
    Recipe as Recipe,
)
from sottovoce.quantization.recipe import (
    Rule as Rule,
)
from sottovoce.report.page import write_report as write_report

__version__: str
