"""Recipes by name: each a function that returns one, each field a flag."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from discover.agents.config import AgentConfig
from discover.agents.setups import CLASSIC, GRID, MINATAR, SHUFFLED_GRID, LossConfig
from discover.names import unknown
from discover.searches.curriculum import CurriculumConfig
from discover.searches.evolution import EvolutionConfig
from discover.searches.families import LPGConfig, LPOConfig, SoftClipConfig, TunedPPOConfig
from discover.searches.map_elites import MapElitesConfig
from discover.searches.metagrad import MetaGradConfig
from discover.searches.pbt import PBTConfig
from discover.searches.program_family import ProgramConfig
from discover.searches.programs import ProgramsConfig
from discover.searches.recipe import Recipe
from discover.searches.rolling_search import RollingConfig
from discover.searches.whole_life import WholeLifeConfig


def quickstart() -> Recipe:
    """From no drift at all, in minutes on two cores.

    With eight epochs at this high learning rate a policy gradient without a drift is unstable. PPO is not. So there is something
    to discover, and a life of 40 updates shows it.
    """
    return Recipe(
        name="quickstart",
        objective=LPOConfig(start="none", width=32),
        envs=("CartPole-v1",),
        total_steps=20_480,
        generations=20,
        evaluate_every=4,
        evaluation_seeds=16,
        checkpoint_every=4,
        agent=AgentConfig(num_epochs=8, learning_rate=3e-3),
        search=EvolutionConfig(population=32, shared_keys="pair", sigma=0.15, learning_rate=0.05),
    )


def lpo_minatar() -> Recipe:
    """LPO on MinAtar, population 64, 800 generations, 1e7 steps a life: the scale of Goldie et al. 2025 (arXiv:2507.17668)."""
    return Recipe(
        name="lpo_minatar",
        envs=("Breakout-MinAtar", "Freeway-MinAtar"),
        total_steps=10_000_000,
        generations=800,
        learning_rates=(1e-2, 1e-3),
        agent=AgentConfig(num_envs=64, num_minibatches=8, activation="relu", network="mlp", adam_b2=0.99),
        loss=LossConfig(value_clip=0.2),
        search=EvolutionConfig(
            population=64,
            sigma=0.03,
            sigma_decay=0.99,
            sigma_floor=0.01,
            learning_rate=0.03,
            learning_rate_decay=0.99,
            learning_rate_floor=0.001,
        ),
    )


def lpo_small() -> Recipe:
    """`lpo_minatar` for two cores: population 16, lives of 2^18 steps that roll on, eight updates of each a generation.

    Perturbations are small, because larger ones remove the clip from every candidate. Lives roll on, because sixteen whole lives
    take minutes. Late windows have a larger weight, because pairwise signs otherwise favour an early gain over a late loss
    (benchmarks/NOTES.md). Half an hour.
    """
    return replace(
        lpo_minatar(),
        name="lpo_small",
        total_steps=2**18,
        generations=40,
        evaluate_every=10,
        evaluation_seeds=4,
        learning_rates=(),
        agent=MINATAR.agent,
        search=RollingConfig(
            population=16,
            window=8,
            shaping="pairwise",
            sigma=0.01,  # 0.04 removes the clip from every candidate
            learning_rate=0.0015,
            late_window_weight=1.0,
        ),
    )


def ta_lpo_small() -> Recipe:
    """TA-LPO for two cores: as `lpo_small`; `--objective.start FILE` starts from the result of `lpo_small`."""
    return replace(lpo_small(), name="ta_lpo_small", objective=LPOConfig(time_aware=True))


def soft_clip_small() -> Recipe:
    """A clip of twelve numbers, by CMA-ES over lives of many lengths and learning rates in four environments, for two cores.

    Lengths are log-uniform from 2^15 to 2^18 environment steps. Learning rates are log-uniform within a factor of two, and a
    quarter of the lives keep theirs constant. All candidates of a generation have the same tasks.
    """
    return Recipe(
        name="soft_clip_small",
        objective=SoftClipConfig(),
        envs=("Breakout-MinAtar", "SpaceInvaders-MinAtar", "CartPole-v1", "Acrobot-v1"),
        total_steps=2**15,
        longest_steps=2**18,
        generations=100,
        evaluate_every=20,
        evaluation_seeds=4,
        checkpoint_every=2,
        exported="last",  # four lives of different lengths do not tell generations apart
        agent=MINATAR.agent,
        rate_spread=2.0,
        constant_rates=0.25,
        loss=MINATAR.loss,
        search=EvolutionConfig(strategy="CMA_ES", population=16, sigma=0.2),
    )


def ta_soft_clip_small() -> Recipe:
    """`soft_clip_small` whose numbers also depend on n/N and log10 N."""
    return replace(soft_clip_small(), name="ta_soft_clip_small", objective=SoftClipConfig(time_aware=True))


def whole_life_small() -> Recipe:
    """A clip of twelve numbers and four weights around it, all functions of n/N and log10 N, by the gradient of the return
    through whole lives of 16 updates, for two cores.

    Gradients through 64 updates are millions of times as large, and those of different agents have nothing in common; Adam's
    larger epsilon makes them smaller (`python -m benchmarks.whole_life`).
    """
    return Recipe(
        name="whole_life_small",
        objective=SoftClipConfig(time_aware=True, schedules=True),
        total_steps=2**13,
        generations=40,
        evaluate_every=10,
        evaluation_seeds=8,
        checkpoint_every=2,
        exported="last",
        agent=replace(CLASSIC.agent, learning_rate=1e-3, adam_eps=1e-3),
        loss=CLASSIC.loss,
        search=WholeLifeConfig(lives=8, points=4),
    )


def lpo_brax() -> Recipe:
    """LPO on Ant, population 32, 1025 generations, 3e7 steps a life: the scale of Lu et al. 2022 (arXiv:2210.05639)."""
    return Recipe(
        name="lpo_brax",
        envs=("brax/ant",),
        total_steps=30_000_000,
        generations=1025,
        agent=AgentConfig(
            num_envs=2048,
            num_steps=10,
            num_starts=1,
            num_minibatches=32,
            learning_rate=3e-4,
            anneal=False,
            normalise_obs=True,
            normalise_reward=True,
        ),
        loss=LossConfig(gamma=0.97, entropy_coef=1e-2, value_coef=0.25),
        search=EvolutionConfig(
            population=32,
            shaping="z_score",
            sigma=0.04,
            sigma_decay=0.999,
            sigma_floor=0.01,
            learning_rate=0.01,
            learning_rate_decay=0.999,
            learning_rate_floor=0.001,
            adam_b1=0.99,
        ),
    )


def ta_lpo() -> Recipe:
    """TA-LPO on SpaceInvaders, as in Jackson et al. 2024 (arXiv:2402.05828).

    Its search settings are unpublished; these are those of `lpo_minatar`, by the same group.
    """
    base = lpo_minatar()
    return Recipe(
        name="ta_lpo",
        objective=LPOConfig(time_aware=True),
        envs=("SpaceInvaders-MinAtar",),
        total_steps=base.total_steps,
        generations=base.generations,
        learning_rates=(7e-3,),
        agent=base.agent,
        search=base.search,
    )


GROOVE_LPG = LPGConfig(cell="gru", predictions=8, see_gamma=False)


def program_small() -> Recipe:
    """Drifts as programs, from PPO on, by regularised evolution for two cores.

    CartPole is the hurdle: a program that fails there is not trained in the games.
    """
    return Recipe(
        name="program_small",
        objective=ProgramConfig(),
        envs=("CartPole-v1", "Breakout-MinAtar", "SpaceInvaders-MinAtar"),
        total_steps=2**16,
        generations=60,
        evaluate_every=10,
        evaluation_seeds=4,
        checkpoint_every=2,
        agent=MINATAR.agent,
        loss=MINATAR.loss,
        search=ProgramsConfig(children=15),
    )


def pbt_small() -> Recipe:
    """PPO's settings and learning rate by population-based training on Breakout, for two cores: 16 members for one life of 2^19
    steps, which copy one another every four updates."""
    return Recipe(
        name="pbt_small",
        objective=TunedPPOConfig(),
        envs=("Breakout-MinAtar",),
        total_steps=2**19,
        generations=16,
        evaluate_every=8,
        evaluation_seeds=4,
        checkpoint_every=2,
        exported="last",
        agent=MINATAR.agent,
        loss=MINATAR.loss,
        search=PBTConfig(population=16, interval=4),
    )


def map_elites_small() -> Recipe:
    """PPO's settings on Breakout by MAP-Elites, over the size of updates and the entropy at the end, for two cores: 30
    generations of 16 lives of 2^16 steps."""
    return Recipe(
        name="map_elites_small",
        objective=TunedPPOConfig(),
        envs=("Breakout-MinAtar",),
        total_steps=2**16,
        generations=30,
        evaluate_every=10,
        evaluation_seeds=8,
        checkpoint_every=2,
        agent=MINATAR.agent,
        loss=MINATAR.loss,
        search=MapElitesConfig(population=16, grid=(8, 8)),
    )


def lpg() -> Recipe:
    """LPG by meta-gradient on the five tabular worlds, 960 lifetimes side by side, as in Oh et al. 2020 (arXiv:2007.08794)."""
    return Recipe(
        name="lpg",
        objective=LPGConfig(),
        envs=("gridworld/tabular",),
        total_steps=None,
        generations=5000,
        evaluate_every=500,
        evaluation_seeds=64,
        checkpoint_every=50,
        agent=GRID.agent,
        loss=replace(GRID.loss, gamma=0.995),
        search=MetaGradConfig(members=960, gamma=0.995, policy_target_coef=0.001),
    )


def groove() -> Recipe:
    """LPG with a curriculum of regret on random worlds, 512 lifetimes, as in Jackson et al. 2023 (arXiv:2310.02782)."""
    return replace(
        lpg(),
        name="groove",
        envs=("gridworld/all_shortlife",),
        loss=GRID.loss,
        objective=GROOVE_LPG,
        search=MetaGradConfig(members=512),
        curriculum=CurriculumConfig(kind="plr", chunk=16),
    )


def ta_lpg() -> Recipe:
    """TA-LPG by evolution on random worlds and lifetimes, population 1024, as in Jackson et al. 2024 (arXiv:2402.05828)."""
    return Recipe(
        name="ta_lpg",
        objective=replace(GROOVE_LPG, time_aware=True),
        envs=("gridworld/all_vrandlife",),
        total_steps=None,
        generations=2500,
        evaluate_every=100,
        evaluation_seeds=64,
        checkpoint_every=10,
        agent=GRID.agent,
        loss=GRID.loss,
        search=EvolutionConfig(
            population=1024,
            shared_keys="pair",
            shaping="pairwise",
            sigma=0.1,
            learning_rate=1e-2,
            learning_rate_decay=0.999,
            learning_rate_floor=1e-5,
            adam_b1=0.99,
        ),
    )


def lpg_es() -> Recipe:
    """LPG by evolution, blind to time: `ta_lpg` without its two inputs, as Jackson et al. 2024 compare them."""
    return replace(ta_lpg(), name="lpg_es", objective=GROOVE_LPG)


SMALL_LPG = LPGConfig(cell="gru", hidden=16, predictions=8)  # 1,434 numbers, few enough for a small population


def lpg_small() -> Recipe:
    """`lpg` for two cores: small random worlds, 32 lifetimes of 250 updates."""
    return replace(
        lpg(),
        name="lpg_small",
        envs=("gridworld/small",),
        generations=150,
        evaluate_every=50,
        evaluation_seeds=16,
        loss=GRID.loss,
        objective=SMALL_LPG,
        search=MetaGradConfig(members=32, learning_rate=4e-3),
    )


def groove_small() -> Recipe:
    """`groove` for two cores: `lpg_small` with a curriculum of regret."""
    return replace(lpg_small(), name="groove_small", curriculum=CurriculumConfig(kind="plr", size=256))


def ta_lpg_small() -> Recipe:
    """`ta_lpg` for two cores: small random worlds, population 64, lifetimes of 10 to 250 updates.

    Perturbations twice the paper's and five times its rate: with thirty generations rather than
    thousands, smaller ones leave the rule where it began.
    """
    base = ta_lpg()
    return replace(
        base,
        name="ta_lpg_small",
        envs=("gridworld/small_vrandlife",),
        generations=30,
        evaluate_every=10,
        evaluation_seeds=16,
        objective=replace(SMALL_LPG, time_aware=True),
        search=replace(base.search, population=64, sigma=0.2, learning_rate=0.05, adam_b1=0.9),
    )


def lpg_es_small() -> Recipe:
    """`lpg_es` for two cores: `ta_lpg_small` without its two inputs."""
    return replace(ta_lpg_small(), name="lpg_es_small", objective=SMALL_LPG)


def lpg_networks_small() -> Recipe:
    """LPG for agents that are networks, by evolution from A2C on, for two cores.

    Generation 0 was taught A2C's targets, so it trains network agents from the start (`discover.searches.imitation`). Lives are
    log-uniform from 2^15 to 2^17 steps, in two games of MinAtar, CartPole and a grid world whose cells are shuffled.
    """
    return Recipe(
        name="lpg_networks_small",
        objective=LPGConfig(cell="gru", hidden=16, predictions=16, see_gamma=False, start="a2c"),
        envs=("CartPole-v1", "Breakout-MinAtar", "SpaceInvaders-MinAtar", "gridworld/rand_small"),
        total_steps=2**15,
        longest_steps=2**17,
        generations=60,
        evaluate_every=20,
        evaluation_seeds=8,
        checkpoint_every=5,
        exported="last",
        agent=replace(SHUFFLED_GRID.agent, normalise_reward=True, learning_rate=2e-3),
        rate_spread=2.0,
        constant_rates=0.25,
        loss=SHUFFLED_GRID.loss,
        search=EvolutionConfig(population=64, sigma=0.03, learning_rate=0.01),
    )


def ta_lpg_networks_small() -> Recipe:
    """`lpg_networks_small` whose rule also sees n/N and log N."""
    base = lpg_networks_small()
    return replace(base, name="ta_lpg_networks_small", objective=replace(base.objective, time_aware=True))


RECIPES: dict[str, Callable[[], Recipe]] = {
    recipe.__name__: recipe
    for recipe in (
        *(quickstart, lpo_minatar, lpo_brax, ta_lpo, lpo_small, ta_lpo_small),
        *(soft_clip_small, ta_soft_clip_small, program_small, pbt_small, map_elites_small, whole_life_small),
        *(lpg, groove, ta_lpg, lpg_es),
        *(lpg_small, groove_small, ta_lpg_small, lpg_es_small),
        *(lpg_networks_small, ta_lpg_networks_small),
    )
}


def get(name: str) -> Recipe:
    """A recipe by name. Raises ValueError with the nearest name for an unknown one."""
    if name in RECIPES:
        return RECIPES[name]()
    raise unknown("recipe", name, RECIPES)
