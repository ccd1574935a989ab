"""A benchmark with a known answer: sinusoids in several kinds of noise.

`plan_benchmark` lays out which methods meet which noise, `run_jobs` does it (and
`run_benchmark` both); `summary`, `compare` and `to_markdown` turn its rows into tables.
"""

from sepprior.benchmark.jobs import WITHOUT_PRIOR as WITHOUT_PRIOR
from sepprior.benchmark.recorded import file_scenario as file_scenario
from sepprior.benchmark.recorded import recorded_scenario as recorded_scenario
from sepprior.benchmark.runner import METHODS as METHODS
from sepprior.benchmark.runner import plan_benchmark as plan_benchmark
from sepprior.benchmark.runner import run_benchmark as run_benchmark
from sepprior.benchmark.runner import run_jobs as run_jobs
from sepprior.benchmark.scenarios import SCENARIOS as SCENARIOS
from sepprior.benchmark.scenarios import Scenario as Scenario
from sepprior.benchmark.scenarios import Trials as Trials
from sepprior.benchmark.scenarios import cell as cell
from sepprior.benchmark.scenarios import make_noise_trials as make_noise_trials
from sepprior.benchmark.scenarios import make_trials as make_trials
from sepprior.benchmark.scenarios import noise_record as noise_record
from sepprior.benchmark.tables import compare as compare
from sepprior.benchmark.tables import grid as grid
from sepprior.benchmark.tables import summary as summary
from sepprior.benchmark.tables import to_markdown as to_markdown
