"""A generation of a search for LPO beside the same lives under plain PPO, in turn: `python -m benchmarks.generation`.

Population 16 on Breakout, 65,536 steps each, the sizes of the reference figure (learn-rl-algorithms on two such cores on another
day, which today's JAX does not run). The ratio says what the outer loop and the drift's network cost; ask, tell and the transfers
between are in ours, compilation in neither. So does the second one: what the host's loop asks, reports and sends in a generation,
lives apart, beside evosax's own ask and tell of a population of that size.
"""

from __future__ import annotations

import json
import time
from statistics import median

import jax

from benchmarks.record import ROOT, provenance
from discover import recipes
from discover.agents.setups import usual_setup
from discover.devices.parallel import to_default_device
from discover.evaluation.train import train
from discover.searches.outer_loop import OuterLoop
from discover.searches.registry import search_for

ENV = "Breakout-MinAtar"
POPULATION, STEPS, REPEATS, TRIALS = 16, 65_536, 3, 50
REFERENCE = 43_700  # environment steps/s


def searching() -> OuterLoop:
    base = recipes.lpo_minatar()
    return search_for(
        recipes.replace(
            base,
            envs=(ENV,),
            total_steps=STEPS,
            learning_rates=(),
            agent=usual_setup(ENV).agent,
            search=recipes.replace(base.search, population=POPULATION, chunk=1),
        )
    )


def plain(seed: int) -> None:
    jax.block_until_ready(
        train("ppo", ENV, total_steps=STEPS, num_seeds=POPULATION, seed=seed, num_evals=1, chunk=1).state
    )


def loop_alone(search: OuterLoop, state) -> float:
    """Seconds of a generation of which every life is worth nothing."""
    search.problem.fitness = lambda *_, **__: jax.numpy.zeros((POPULATION // 2, 2, 1))
    search.generation(state)
    times = [seconds(lambda: to_default_device(search.generation(state)[0])) for _ in range(TRIALS)]
    del search.problem.fitness
    return median(times)


def evosax_alone(search: OuterLoop) -> float:
    """Seconds of its ask and tell."""
    from evosax.algorithms import Open_ES

    strategy = Open_ES(population_size=POPULATION, solution=search.template)
    params, key = strategy.default_params, jax.random.key(0)
    state = strategy.init(key, search.template, params)
    ask, tell = jax.jit(strategy.ask), jax.jit(strategy.tell)

    def once():
        population, after = ask(key, state, params)
        jax.block_until_ready(tell(key, population, jax.numpy.zeros(POPULATION), after, params))

    once()
    return median(seconds(once) for _ in range(TRIALS))


def seconds(call) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def main() -> None:
    search = searching()
    state = search.init()
    state, _ = search.generation(state)  # compiles
    plain(0)
    pairs = []
    for repeat in range(REPEATS):

        def generation():
            nonlocal state
            state = to_default_device(search.generation(state)[0])

        pairs.append({"generation": seconds(generation), "ppo": seconds(lambda seed=repeat + 1: plain(seed))})
        print(pairs[-1], flush=True)
    rate = POPULATION * STEPS / median(pair["generation"] for pair in pairs)
    found = {
        "env_steps_per_s": rate,
        "of_plain_ppo": median(pair["ppo"] / pair["generation"] for pair in pairs),
        "reference_env_steps_per_s": REFERENCE,
        "pairs": pairs,
        "loop_alone_s": loop_alone(search, state),
        "evosax_alone_s": evosax_alone(search),
    }
    (ROOT / "benchmarks/results/generation.json").write_text(json.dumps(provenance() | found, indent=1) + "\n")
    print(
        f"the loop alone {found['loop_alone_s'] * 1e3:.1f} ms, evosax's ask and tell {found['evosax_alone_s'] * 1e3:.1f} ms"
    )
    print(f"{rate:,.0f} environment steps/s, {found['of_plain_ppo']:.2f} of plain PPO; the reference had {REFERENCE:,}")


if __name__ == "__main__":
    main()
