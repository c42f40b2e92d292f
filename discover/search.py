"""The compiled pieces of a search: by evolution or by meta-gradient, one pytree of state and one step."""

from __future__ import annotations

from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

import envs
import learned_objectives as lo
from discover import curriculum as cu
from discover import parallel
from discover.agent import Agent, AgentState, Task, diverged
from discover.evolution import SHAPINGS, Evolution
from discover.metagrad import Member, MetaGrad
from discover.recipes import Recipe, purpose_key
from discover.record import number
from discover.train import as_arrays, resolve_objective
from envs.gridworld import GridWorld

PyTree = Any

JUDGEMENT = 2_000_000_000  # folded into an agent's key, where its updates fold their number
STAGGER = 1_000_033  # folded into a first member's key: how much of its life is left
STRETCHES = 10  # a life's training return is that of the last of so many equal stretches


class MetaState(struct.PyTreeNode):
    """All that a run carries from one step to the next. Arrays only."""

    generation: jax.Array  # i32[], steps of the search done: generations, or meta-gradients
    updates: jax.Array  # i32[], updates of agents done, evaluations included
    search: PyTree  # the strategy's state, or a GradientState
    best: lo.Objective  # the mean with the best evaluation so far
    best_score: jax.Array  # f32[], see `Search._keep_best`
    best_generation: jax.Array  # i32[], the generations that mean had seen
    reference: jax.Array  # f32[E], the starting mean's return in each environment
    scale: jax.Array  # f32[E], the size of a difference that matters there


class Setting(NamedTuple):
    """One environment of a recipe, ready for lives."""

    agent: Agent
    tasks: cu.Tasks
    episodes: int | None  # fresh ones that a life is judged by; None: by its training return


def life_fitness(setting: Setting, objective: lo.Objective, task: Task, key: jax.Array) -> jax.Array:
    """f32[]: what one life under an objective comes to; NaN if its agent diverged.

    Its mean training return at the end, in a life too short for any episode to end that of those in play; or its mean return
    over so many fresh episodes.
    """
    agent = setting.agent
    if setting.episodes is not None:
        state = live(setting, objective, task, key)
        fitness = final_return(setting, task, state)
    else:
        updates = setting.tasks.longest  # all lives are of one length
        state, returns = agent.train(objective, task, key, num_updates=updates, num_evals=min(STRETCHES, updates))
        fitness = jnp.where(jnp.isnan(returns[-1]), state.env.episodes.running.mean(), returns[-1])
    return jnp.where(diverged(state) | ~jnp.isfinite(fitness), jnp.nan, fitness)


def live(setting: Setting, objective: lo.Objective, task: Task, key: jax.Array) -> AgentState:
    """The agent at the end of its own lifetime; side by side with others, all run until the longest ends."""
    updates = cu.num_updates(setting.agent.config, task)
    return setting.agent.train(objective, task, key, num_updates=updates)[0]


def final_return(setting: Setting, task: Task, state: AgentState) -> jax.Array:
    """f32[]: the mean return of fresh episodes, on a key of the agent's own that no update uses."""
    key = jax.random.fold_in(state.key, JUDGEMENT)
    return setting.agent.evaluate(task, state, key, num_episodes=setting.episodes or 64).mean()


class Search:
    """What every search has: its environments, evaluations of its mean, and the best mean so far.

    Every key is a function of (seed, purpose, generation, pair or member, life).
    """

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self.template = recipe.template()
        self.settings = tuple(self._settings())

    def _settings(self):
        recipe, num_fixed = self.recipe, None
        if recipe.curriculum.kind == "fixed":
            num_fixed = recipe.curriculum.size
        rates = recipe.learning_rates or (recipe.agent.learning_rate,) * len(recipe.envs)
        for name, rate in zip(recipe.envs, rates, strict=True):
            env, _ = envs.make(name)
            agent = Agent.fit(env, recipe.agent, self.template)
            tasks = cu.Tasks(agent, recipe.total_steps, rate, num_fixed, recipe.seed)
            episodes = recipe.fitness_episodes or (None if recipe.total_steps else 64)
            yield Setting(agent, tasks, episodes)

    def init(self) -> MetaState:
        count = len(self.settings)
        return MetaState(
            generation=jnp.int32(0),
            updates=jnp.int32(0),
            search=self.start(),
            best=self.template,
            best_score=jnp.float32(-jnp.inf),
            best_generation=jnp.int32(0),
            reference=jnp.zeros(count),
            scale=jnp.ones(count),
        )

    def start(self) -> PyTree:
        """The search's own state before its first step."""
        raise NotImplementedError

    def generation(self, state: MetaState) -> tuple[MetaState, dict[str, Any]]:
        """One step: (next state, what to log of it)."""
        raise NotImplementedError

    def mean(self, state: MetaState) -> lo.Objective:
        """The objective that the search has come to."""
        raise NotImplementedError

    def describe(self, state: MetaState) -> dict[str, Any]:
        """What to log of the search itself."""
        return {"mean_norm": number(optax.tree.norm(self.mean(state)))}

    def placed(self, state: MetaState) -> MetaState:
        """A state from a checkpoint, on the devices that `generation` expects it on."""
        return free(state)

    def _key(self, purpose: str, generation: int) -> jax.Array:
        return jax.random.fold_in(purpose_key(self.recipe.seed, purpose), generation)

    def env_steps(self, state: MetaState) -> int:
        """Environment steps that agents learned from so far, evaluations included."""
        return int(state.updates) * self.recipe.agent.steps_per_update

    @cached_property
    def _lengths(self):
        """Per environment: keys [n] of tasks -> i32[n], updates in their lives."""

        def lengths(setting: Setting):
            return jax.jit(jax.vmap(lambda key: cu.num_updates(setting.agent.config, setting.tasks(key))))

        return [lengths(setting) for setting in self.settings]

    @cached_property
    def _evaluations(self):
        """Per environment: objective, keys [S] of tasks and lives -> f32[S]."""

        def program(setting: Setting):
            def life(objective, keys):
                task_key, life_key = keys
                return life_fitness(setting, objective, setting.tasks(task_key), life_key)

            return parallel.spread(life, chunk=self.recipe.evolution.chunk)

        return [program(setting) for setting in self.settings]

    def evaluate(self, state: MetaState) -> tuple[MetaState, jax.Array]:
        """Lives of the mean itself, on keys that the search has not met: (state with the best mean kept, f32[E, S]).

        The tasks are the same at every evaluation, the lives are not.
        """
        mean, seeds = free(self.mean(state)), self.recipe.evaluation_seeds
        life_key, task_key = self._key("evaluation", int(state.generation)), purpose_key(self.recipe.seed, "level")
        returns, updates = [], 0
        for e, evaluation in enumerate(self._evaluations):
            keys = jax.random.split(jax.random.fold_in(life_key, e), seeds)
            task_keys = jax.random.split(jax.random.fold_in(task_key, e), seeds)
            lengths = np.asarray(self._lengths[e](task_keys))
            updates += int(lengths.sum())
            returns.append(dealt(evaluation, mean, (task_keys, keys), lengths, self.recipe.evolution.chunk))
        returns = free(jnp.stack(returns))
        state = state.replace(updates=state.updates + updates)
        return self._keep_best(state, mean, returns), returns

    @cached_property
    def _keep_best(self):
        def keep(small, mean, lives):
            best, best_score, best_generation, reference, scale, generation = small
            returns, finite = lives.mean(-1), jnp.isfinite(lives)
            start = jnp.where(finite, lives, 0.0).sum(-1) / jnp.maximum(finite.sum(-1), 1)
            spread = jnp.sqrt(jnp.where(finite, (lives - start[:, None]) ** 2, 0.0).mean(-1))
            first = generation == 0
            reference = jnp.where(first, start, reference)
            scale = jnp.where(first, jnp.maximum(jnp.maximum(jnp.abs(start), spread), 1e-3), scale)
            # Over environments of different scales: how far from the starting mean, in units of its return there. A mean
            # under which a life diverged is never the best.
            score = ((returns - reference) / scale).mean()
            better = jnp.isfinite(score) & (score > best_score)
            new = (mean, score, generation)
            picked = jax.tree.map(lambda a, b: jnp.where(better, a, b), new, (best, best_score, best_generation))
            return (*picked, reference, scale)

        keep = jax.jit(keep)
        names = ("best", "best_score", "best_generation", "reference", "scale")

        def keep_best(state: MetaState, mean, lives) -> MetaState:
            small = (*(getattr(state, name) for name in names), state.generation)
            return state.replace(**dict(zip(names, keep(small, mean, lives), strict=True)))

        return keep_best


class EvolutionSearch(Search):
    """Evolution strategies: candidates in pairs, each life judged at its end."""

    def __init__(self, recipe: Recipe):
        super().__init__(recipe)
        if recipe.curriculum.kind == "plr":
            raise ValueError(
                "curriculum.kind 'plr' replays tasks between the windows of a meta-gradient; with evolution choose 'uniform' or "
                "'fixed'."
            )
        self.evolution = Evolution(recipe.evolution, self.template)

    def start(self) -> PyTree:
        return self.evolution.init(self._key("start", 0))

    def mean(self, state: MetaState) -> lo.Objective:
        return self.evolution.mean(state.search)

    def describe(self, state: MetaState) -> dict[str, Any]:
        sigma = self.evolution.sigma(state.search, int(state.generation))
        return {"mean_norm": number(jnp.linalg.norm(state.search.mean)), "sigma": number(sigma)}

    @cached_property
    def _ask(self):
        return jax.jit(self.evolution.ask)

    @cached_property
    def _tell(self):
        shape = SHAPINGS[self.recipe.evolution.shaping]

        def tell(key, population, fitness, search):
            shaped = jnp.stack([shape(f) for f in jnp.moveaxis(fitness, -1, 0)]).mean(0)
            return self.evolution.tell(key, population, fitness, search, shaped)

        return jax.jit(tell)

    @cached_property
    def _lives(self):
        """Per environment: keys shared by all, (pairs of objectives, keys of each pair) -> f32[P // 2, 2].

        A life's key is its task's too, so that whoever shares a key meets the same level for the same time.
        """

        def program(setting: Setting):
            def candidate(objective, keys):
                def life(key):
                    task = setting.tasks(jax.random.fold_in(key, cu.TASK))
                    return life_fitness(setting, objective, task, key)

                return jax.vmap(life)(keys).mean()

            def pair(shared_keys, item):
                objectives, pair_keys = item
                keys = pair_keys if shared_keys is None else shared_keys
                return jax.vmap(candidate, in_axes=(0, None))(objectives, keys)

            return parallel.spread(pair, chunk=self.recipe.evolution.chunk)

        return [program(setting) for setting in self.settings]

    def generation(self, state: MetaState) -> tuple[MetaState, dict[str, Any]]:
        index = int(state.generation)
        population, search = self._ask(self._key("ask", index), state.search, state.generation)
        fitness, updates = self.fitness(index, population)
        search = self._tell(self._key("tell", index), population, fitness, search)
        state = state.replace(generation=state.generation + 1, updates=state.updates + updates, search=search)
        return state, summarise(fitness, self.recipe.envs)

    def fitness(self, index: int, population: PyTree) -> tuple[jax.Array, int]:
        """What the candidates of a generation come to: (f32[P // 2, 2, E], updates of all agents)."""
        c = self.recipe.evolution
        fitness, updates = [], 0
        for e, lives in enumerate(self._lives):
            key = jax.random.fold_in(self._key("life", index), e)
            shape = (c.lives,) if c.shared_keys == "population" else (c.population // 2, c.lives)
            keys = jax.random.split(key, shape)
            task_keys = jax.vmap(lambda k: jax.random.fold_in(k, cu.TASK))(keys.reshape(-1))
            lengths = np.asarray(self._lengths[e](task_keys)).reshape(shape)
            updates += int(lengths.sum()) * c.population // (1 if lengths.ndim == 1 else len(lengths))
            if c.shared_keys == "population":
                fitness.append(lives(keys, (population, None)))
            else:
                fitness.append(dealt(lives, None, (population, keys), lengths.max(-1), c.chunk))
        return free(jnp.stack(fitness, axis=-1)), updates


class GradientState(struct.PyTreeNode):
    """Of a search by meta-gradient."""

    objective: lo.Objective
    opt_state: PyTree
    members: Member  # leaves [groups, chunk, ...]
    buffer: cu.Buffer | None  # of prioritised level replay


class GradientSearch(Search):
    """Meta-gradients over members whose lives roll on, born into the tasks of a curriculum."""

    def __init__(self, recipe: Recipe):
        super().__init__(recipe)
        if len(self.settings) != 1:
            raise ValueError(
                f"a meta-gradient search takes one environment, which may be a distribution, and envs names {len(self.settings)}."
            )
        (self.setting,) = self.settings
        c, self.curriculum = recipe.metagrad, recipe.curriculum
        if c.estimator == "standard" and self.template.critic_width != 1:
            raise ValueError(
                "metagrad.estimator 'standard' takes advantages from the agent's own value, and this objective has none: "
                "choose 'debiased'."
            )
        if self.curriculum.kind == "plr" and self.curriculum.size < c.members:
            raise ValueError(
                f"curriculum.size must be at least metagrad.members, {c.members}, and is {self.curriculum.size}."
            )
        env = self.setting.agent.env
        if self.curriculum.kind == "plr" and self.curriculum.score == "optimal_regret":
            if not isinstance(env, GridWorld) or env.observation != "index":
                raise ValueError(
                    f"curriculum.score 'optimal_regret' needs a world whose best policy can be computed, and {env.name} is none: "
                    "choose 'regret', or a grid world whose objects keep their cells."
                )
        elif self.curriculum.kind == "plr" and self._antagonist is not None:
            Agent.fit(env, recipe.agent, self._antagonist)  # raises here, with a sentence
        self.meta = MetaGrad(c, self.setting.agent)
        groups = c.members // c.chunk
        count = max(d for d in range(1, jax.device_count() + 1) if groups % d == 0)
        self.devices = jax.devices()[:count]

    @cached_property
    def optimizer(self) -> optax.GradientTransformation:
        c = self.recipe.metagrad
        clip = optax.identity() if c.max_grad_norm is None else optax.clip_by_global_norm(c.max_grad_norm)
        return optax.chain(clip, optax.adam(c.learning_rate))

    def start(self) -> PyTree:
        c = self.recipe.metagrad
        keys = jax.random.split(self._key("start", 0), (c.members // c.chunk, c.chunk))
        tasks = self.setting.tasks

        def first(_, keys):
            def one(key):
                drawn = cu.fresh(tasks, jax.random.fold_in(key, cu.TASK))
                # Whole windows until it is replaced, as if its life had begun some time ago.
                windows = -(-cu.num_updates(tasks.agent.config, drawn.task) // c.window)
                left = jax.random.randint(jax.random.fold_in(key, STAGGER), (), 1, windows + 1)
                return self.meta.birth(drawn, key, left * c.window)

            return jax.vmap(one)(keys)

        members = parallel.spread(first, chunk=1, devices=self.devices)(None, keys)
        objective = as_arrays(self.template)
        buffer = cu.empty(self.curriculum, tasks) if self.curriculum.kind == "plr" else None
        return GradientState(objective, self.optimizer.init(objective), members, buffer)

    def placed(self, state: MetaState) -> MetaState:
        search = state.search
        members = parallel.place(search.members, self.devices)
        rest = free((search.objective, search.opt_state, search.buffer))
        return free(state.replace(search=None)).replace(search=GradientState(rest[0], rest[1], members, rest[2]))

    def mean(self, state: MetaState) -> lo.Objective:
        return state.search.objective

    @cached_property
    def _window(self):
        return parallel.spread(self.meta.gradient, chunk=1, devices=self.devices)

    @cached_property
    def _apply(self):
        def apply(grads, objective, opt_state):
            grads = jax.tree.map(lambda g: g.sum(0) / self.recipe.metagrad.members, grads)
            norm = optax.tree.norm(grads)
            updates, after = self.optimizer.update(grads, opt_state, objective)
            moved = optax.apply_updates(objective, updates)
            finite = jnp.isfinite(norm)  # one agent that diverged spoils no objective
            objective, opt_state = jax.tree.map(
                lambda new, old: jnp.where(finite, new, old), (moved, after), (objective, opt_state)
            )
            return objective, opt_state, norm

        return jax.jit(apply)

    def generation(self, state: MetaState) -> tuple[MetaState, dict[str, Any]]:
        c, search, index = self.recipe.metagrad, state.search, int(state.generation)
        grads, members, metrics = self._window(search.objective, search.members)
        objective, opt_state, norm = self._apply(free(grads), search.objective, search.opt_state)
        search = search.replace(objective=objective, opt_state=opt_state, members=members)
        ended = np.asarray(members.state.num_updates >= members.stop)
        extra = 0
        if ended.any():
            search, extra = self._renew(search, ended, index)
        row = {name: number(np.asarray(value).mean()) for name, value in metrics.items()}
        row |= {"gradient_norm": number(norm), "ended": int(ended.sum())}  # a norm of None: the step was skipped
        updates = state.updates + c.members * (c.window + 1) + extra
        return state.replace(generation=state.generation + 1, updates=updates, search=search), {"meta": row}

    def _renew(self, search: GradientState, ended: np.ndarray, index: int) -> tuple[GradientState, int]:
        """Let new members take the place of those whose lives have ended: (the search, updates of antagonists)."""
        keys = jax.random.split(self._key("birth", index), ended.size)
        task_keys = jax.vmap(lambda key: jax.random.fold_in(key, cu.TASK))(keys)
        buffer, updates = search.buffer, 0
        if buffer is None:
            drawn = self._fresh(task_keys)
        else:
            drawn, tally = jax.tree.map(_flat, free((search.members.drawn, search.members.tally)))
            final, reference, updates = self._judge(search.members, drawn, ended, index)
            life = cu.Life(
                final_return=final,
                reference=reference,
                positive_value_loss=tally.positive / tally.count,
                l1_value_loss=tally.absolute / tally.count,
                mean_value=tally.value / tally.count,
                max_return=tally.max_return,
            )
            buffer, drawn = self._replay(buffer, drawn, life, ended.reshape(-1), task_keys)
        grouped = jax.tree.map(lambda x: x.reshape((*ended.shape, *x.shape[1:])), (free(drawn), keys))
        members = self._reborn(None, (search.members, ended, *grouped))
        return search.replace(members=members, buffer=buffer), updates

    @cached_property
    def _fresh(self):
        return jax.jit(jax.vmap(partial(cu.fresh, self.setting.tasks)))

    @cached_property
    def _replay(self):
        def replay(buffer, drawn, life, ended, keys):
            buffer = cu.record(self.curriculum, buffer, drawn, life, ended)
            return cu.draw(self.curriculum, self.setting.tasks, buffer, keys, ended)

        return jax.jit(replay)

    @cached_property
    def _reborn(self):
        def one(member: Member, ended, drawn: cu.Drawn, key):
            stop = cu.num_updates(self.setting.agent.config, drawn.task)
            new = self.meta.birth(drawn, key, stop)
            return jax.tree.map(lambda a, b: jnp.where(ended, a, b), new, member)

        return parallel.spread(lambda _, item: jax.vmap(one)(*item), chunk=1, devices=self.devices)

    def _judge(self, members: Member, drawn: cu.Drawn, ended: np.ndarray, index: int):
        """Of the members that ended: (their final returns f32[P], references f32[P], updates of antagonists trained).

        A reference is found once, when a level is new, and comes back from the buffer with the level ever after.
        """
        final = reference = np.full(ended.size, np.nan, np.float32)
        if "regret" not in self.curriculum.score:
            return jnp.asarray(final), jnp.asarray(reference), 0
        final = self._final_returns(None, members, ended, final.reshape(ended.shape))
        new = ended.reshape(-1) & np.isnan(np.asarray(drawn.reference))
        keys = jax.random.split(self._key("antagonist", index), ended.size)
        items = jax.tree.map(lambda x: x.reshape((*ended.shape, *x.shape[1:])), (drawn.task, keys))
        shape = ended.shape
        reference = self._references(
            self._antagonist, items, new.reshape(shape), np.asarray(drawn.reference).reshape(shape)
        )
        updates = 0
        if self.curriculum.score == "regret":
            lengths = np.asarray(drawn.task.lifetime) / self.setting.agent.config.steps_per_update
            updates = int(lengths[new].sum())
        return free(final).reshape(-1), free(reference).reshape(-1), updates

    @cached_property
    def _final_returns(self):
        def judge(_, member: Member):
            return final_return(self.setting, member.drawn.task, member.state)

        return parallel.spread_some(judge, chunk=self.curriculum.chunk, devices=self.devices)

    @cached_property
    def _antagonist(self) -> lo.Objective | None:
        if self.curriculum.score != "regret":
            return None
        return as_arrays(self.recipe.loss.on(resolve_objective(self.curriculum.antagonist)))

    @cached_property
    def _references(self):
        setting, trained = self.setting, self._antagonist
        if trained is not None:
            setting = setting._replace(agent=Agent.fit(setting.agent.env, setting.agent.config, trained))

        def reference(antagonist, item):
            task, key = item
            if antagonist is None:
                return envs.gridworld.optimal_return(setting.agent.env, task.env_params)
            return final_return(setting, task, live(setting, antagonist, task, key))

        return parallel.spread_some(reference, chunk=self.curriculum.chunk, devices=self.devices)


SEARCHES: dict[str, type[Search]] = {"evolution": EvolutionSearch, "metagrad": GradientSearch}


def _flat(x: jax.Array) -> jax.Array:
    return x.reshape((-1, *x.shape[2:]))


def dealt(program, shared: PyTree, items: PyTree, cost: np.ndarray, chunk: int | None) -> jax.Array:
    """`program`, made by `spread`, over items whose costs differ."""
    if (cost == cost[0]).all():
        return program(shared, items)
    order = parallel.deal(cost, chunk)
    outs = free(program(shared, jax.tree.map(lambda x: x[order], items)))
    return jnp.zeros((len(cost), *outs.shape[1:]), outs.dtype).at[order].set(outs)


def free(tree: PyTree) -> PyTree:
    """The same arrays, tied to no device. What came from devices, or from a checkpoint, is tied to those it was on: it would
    compile every program once more, and meet no other number of devices."""
    return parallel.dress(jax.device_put(jax.device_get(parallel.bare(tree))), tree)


def summarise(fitness: jax.Array, names: tuple[str, ...]) -> dict[str, Any]:
    """Of raw fitness f32[P // 2, 2, E]: per environment over candidates that did not diverge, and the share that did."""
    out, fitness = {}, np.asarray(fitness)  # on the host: how many diverged is no shape to compile for
    for e, name in enumerate(names):
        values = fitness[..., e][np.isfinite(fitness[..., e])]
        if values.size:
            out[name] = {
                "mean": float(values.mean()),
                "std": float(values.std()),
                "best": float(values.max()),
            }
        else:
            out[name] = {"mean": None, "std": None, "best": None}
    return {"fitness": out, "diverged": float((~np.isfinite(fitness)).any(-1).mean())}
