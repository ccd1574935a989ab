"""A benchmark with a known answer: sinusoids in six kinds of noise.

`run_benchmark` fits the same trials with every method; `summary`, `compare` and
`to_markdown` turn its rows into tables.
"""

from sepprior.benchmark.runner import METHODS as METHODS
from sepprior.benchmark.runner import iterate_benchmark as iterate_benchmark
from sepprior.benchmark.runner import run_benchmark as run_benchmark
from sepprior.benchmark.scenarios import SCENARIOS as SCENARIOS
from sepprior.benchmark.scenarios import Scenario as Scenario
from sepprior.benchmark.scenarios import Trials as Trials
from sepprior.benchmark.scenarios import cell as cell
from sepprior.benchmark.scenarios import make_trials as make_trials
from sepprior.benchmark.scenarios import noise_record as noise_record
from sepprior.benchmark.scenarios import recorded_scenario as recorded_scenario
from sepprior.benchmark.tables import compare as compare
from sepprior.benchmark.tables import summary as summary
from sepprior.benchmark.tables import to_markdown as to_markdown
