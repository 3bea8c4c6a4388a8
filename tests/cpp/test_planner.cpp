// The planner from C++: a plan, a proof, invalid options; and bounds that never exceed what they bound.
// tests/python/planner/test_planner.py checks the optima by exhaustive search.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <random>
#include <thread>

#include "check.hpp"
#include "planner/cost.hpp"
#include "planner/k_cycle.hpp"
#include "planner/label_bounds.hpp"
#include "planner/root_bisection.hpp"
#include "planner/search.hpp"
#include "small_problem.hpp"

using namespace orbitsplit;

namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();
const TimeLimit unlimited(infinity);

void check_solution() {
    const Solution solution = solve(small_problem());
    CHECK(solution.status == Status::optimal);
    CHECK(solution.gap == 0);
    CHECK(solution.objective_s == evaluate(small_problem(), solution.stages).objective_s);
    CHECK(std::string(status_name(solution.status)) == "optimal");
}

// A problem that is prepared once gives what it gives otherwise, in several threads at once.
void check_prepared() {
    const PreparedProblem prepared(small_problem());
    const Solution expected = solve(small_problem());
    std::atomic<int> equal = 0;
    std::vector<std::thread> callers;
    for (int caller = 0; caller < 3; ++caller) {
        callers.emplace_back([&, copy = prepared] {
            const Solution solution = solve(copy);
            const double value = evaluate(copy, solution.stages).objective_s;
            equal += solution.stages == expected.stages && value == expected.objective_s;
        });
    }
    for (std::thread& caller : callers) caller.join();
    CHECK(equal == 3);
    CHECK(prepared.problem().layers == small_problem().layers);
    CHECK_THROWS(PreparedProblem(Problem{}), std::invalid_argument, "layers is empty");
}

void check_infeasible() {
    Problem problem = small_problem();
    problem.layer_memory_bytes = {1, 9.1e9, 1};
    problem.nodes[1].memory_bytes = 8e9;
    const Solution solution = solve(problem);
    CHECK(solution.status == Status::infeasible);
    CHECK(solution.stages.empty());
    CHECK(solution.objective_s == infinity);
    CHECK(solution.reason == "layer 1 (\"b\") needs 9.1 GB, the largest node has 8 GB");
}

void check_options() {
    CHECK_THROWS(solve(small_problem(), {.time_limit_s = -1}), std::invalid_argument,
                 "time_limit_s is -1, must be at least 0");
    CHECK_THROWS(solve(small_problem(), {.objective = Objective::latency, .gap = 1}), std::invalid_argument,
                 "gap is 1, must be at least 0 and below 1");
    CHECK_THROWS(solve(small_problem(), {.max_labels = 0}), std::invalid_argument,
                 "max_labels is 0, must be from 1");
    CHECK_THROWS(solve(small_problem(), {.max_bytes = 0}), std::invalid_argument, "max_bytes is 0");
    CHECK_THROWS(solve(small_problem(), {.threads = 257}), std::invalid_argument,
                 "threads is 257, it must be from 1 to 256");
    CHECK_THROWS(planner::solve(small_problem(), {{}, 16, 65}), std::invalid_argument,
                 "max_bitset_nodes 65, must be at least 0 and max_bitset_nodes at most 64");
    CHECK_THROWS(solve(small_problem(), {.max_nodes = 0}), std::invalid_argument,
                 "max_nodes is 0, must be at least 1");
    CHECK_THROWS(solve(small_problem(), {.objective = Objective::time_per_token}), std::invalid_argument,
                 "objective is time_per_token, new_tokens is 0, must be at least 2");
    CHECK_THROWS(solve(Problem{}), std::invalid_argument, "layers is empty");
}

// Everything that makes a relaxation differ from a plan: codec seconds, half-duplex nodes, several groups, micro-batches
// that are not alike.
Problem random_problem(std::mt19937& random, Order order, std::size_t layers, std::size_t nodes) {
    const auto number = [&](double low, double high) {
        return low + (high - low) * static_cast<double>(random() % 1024) / 1024;
    };
    Problem p;
    p.order = order;
    p.layers.assign(layers, "layer");
    for (std::size_t n = 0; n < nodes; ++n)
        p.nodes.push_back({std::to_string(n), number(3, 12), 0, random() % 3 == 0});
    p.levels = {{"a", 1, 0, 0}, {"b", 3, number(0, 1), number(0, 1)}};
    const auto fill = [&](std::vector<double>& values, std::size_t count, double low, double high) {
        for (std::size_t i = 0; i < count; ++i) values.push_back(number(low, high));
    };
    fill(p.layer_memory_bytes, layers, 0, 3);
    fill(p.layer_time_s, layers * nodes, 0, 4);
    fill(p.layer_decode_time_s, layers * nodes, 0, 2);
    fill(p.cut_bytes, layers - 1, 0, 4);
    fill(p.cut_decode_bytes, layers - 1, 0, 2);
    fill(p.bandwidth_bytes_per_s, nodes * nodes, 0.5, 3);
    fill(p.latency_s, nodes * nodes, 0, 1);
    fill(p.loss, (layers - 1) * 2, 0, 1);
    p.loss_budget = number(0.2, 2);
    p.micro_batches = 1 + random() % 5;
    p.groups = 1 + random() % 4;
    p.new_tokens = random() % 4;
    p.latency_occupies_link = random() % 2 == 0;
    if (random() % 3 == 0) fill(p.layer_earlier_time_s, layers * nodes, 0, 4);
    if (random() % 2 == 0) fill(p.stage_overhead_s, nodes, 0, 3);
    if (random() % 2 == 0) fill(p.stage_decode_overhead_s, nodes, 0, 2);
    return p;
}

// Three weight levels: what there is, and two that take a random part of it, or more, and lose something.
void add_weight_levels(std::mt19937& random, Problem& p) {
    p.weight_levels = {{"float32"}, {"int8"}, {"int4"}};
    p.weight_loss.assign(p.layers.size(), 0);
    for (int w = 1; w < 3; ++w) {
        for (std::size_t i = 0; i < p.layers.size(); ++i)
            p.weight_loss.push_back(static_cast<double>(random() % 1024) / 4096);
    }
    for (std::vector<double>* values :
         {&p.layer_memory_bytes, &p.layer_time_s, &p.layer_earlier_time_s, &p.layer_decode_time_s,
          &p.stage_overhead_s, &p.stage_decode_overhead_s}) {
        const std::size_t block = values->size();
        for (std::size_t i = 0; i < 2 * block; ++i)
            values->push_back((*values)[i % block] * static_cast<double>(random() % 1200) / 1024);
    }
}

Problem random_problem(std::mt19937& random, Order order) {
    const std::size_t layers = 2 + random() % 6;
    const std::size_t nodes = 1 + random() % 4;
    Problem p = random_problem(random, order, layers, nodes);
    if (random() % 2 == 0) add_weight_levels(random, p);
    return p;
}

// The vertex at which a chain of these stages ends.
int vertex_of(const planner::Tables& t, const std::vector<Stage>& stages, std::size_t count) {
    int vertex = t.start_vertex[stages[0].node];
    for (std::size_t k = 1; k < count; ++k) {
        const auto begin = t.neighbour.begin() + t.neighbour_start[vertex];
        const auto end = t.neighbour.begin() + t.neighbour_start[vertex + 1];
        vertex = *std::find_if(begin, end, [&](int next) { return t.node_of[next] == stages[k].node; });
    }
    return vertex;
}

// A label for the first `count` stages of a plan, after the last of them has computed.
planner::Label label_of(const Problem& p, const planner::Tables& t, const Evaluation& score,
                        const std::vector<Stage>& stages, std::size_t count) {
    planner::Label label;
    for (std::size_t k = 0; k < count; ++k) {
        const bool is_last = k + 1 == count;
        const bool half_duplex = p.nodes[stages[k].node].half_duplex;
        label.visited = planner::with_node(t, label.visited, stages[k].node);
        const auto add = [&](planner::Load& load, double stage, double earlier, double link) {
            // What encoding and sending add to the last stage is not part of its label yet.
            load.sum += is_last ? 0 : stage + (half_duplex ? 0 : link);
            load.max = is_last ? load.max : std::max({load.max, earlier, half_duplex ? 0 : link});
        };
        const bool has_link = k + 1 < stages.size();
        const double token = generates(p) ? score.decode_stage_s[k] : 0;
        const std::vector<double>& earlier =
            score.earlier_stage_s.empty() ? score.stage_s : score.earlier_stage_s;
        add(label.prefill, score.stage_s[k], earlier[k], has_link ? score.link_s[k] : 0);
        if (generates(p)) add(label.token, token, token, has_link ? score.decode_link_s[k] : 0);
        if (is_last) break;
        for (int i = stages[k].start; !p.weight_levels.empty() && i < stages[k].stop; ++i)
            label.loss += p.weight_loss[stages[k].weight_level * p.layers.size() + i];
        label.loss += p.loss[(stages[k].stop - 1) * p.levels.size() + stages[k].level];
        // Decoding is charged on arrival, before the next stage is known.
        const double decode = p.levels[stages[k].level].decode_s_per_byte;
        if (k + 2 == count) {
            label.prefill.sum += decode * p.cut_bytes[stages[k].stop - 1];
            if (generates(p)) label.token.sum += decode * p.cut_decode_bytes[stages[k].stop - 1];
        }
        const double latency = p.latency_s[stages[k].node * p.nodes.size() + stages[k + 1].node];
        label.prefill.sum += propagation_s(p, latency);
        if (generates(p)) label.token.sum += propagation_s(p, latency);
    }
    label.boundary = stages[count - 1].start;
    label.vertex = vertex_of(t, stages, count);
    label.is_arrived = true;
    if (!t.tracks.sum) label.prefill.sum = 0;
    if (!t.token_tracks.sum) label.token.sum = 0;
    return label;
}

// Along the optimal plan no bound exceeds the optimum, whatever the multiplier.
void check_bounds_on(const Problem& p, const planner::Tables& t, const Solution& best) {
    const Evaluation score = evaluate(p, best.stages);
    for (const planner::Metric& metric : t.metrics) {
        for (const double multiplier : {0.0, 0.5, 4.0}) {
            planner::Interval whole;
            whole.relaxations.push_back(std::make_shared<planner::Relaxation>(
                planner::relax(t, metric, infinity, multiplier, unlimited)));
            CHECK(whole.relaxations[0]->root - multiplier * t.loss_limit <=
                  best.objective_s * (1 + planner::rounding));
            std::vector<planner::Interval> intervals;
            intervals.push_back(std::move(whole));
            const planner::LabelBounds bounds(t, metric, intervals);
            for (std::size_t count = 1; count <= best.stages.size(); ++count) {
                const planner::Label label = label_of(p, t, score, best.stages, count);
                const std::size_t at = planner::state(t, label.visited, label.boundary, label.vertex);
                CHECK(bounds.bound(label, at) <= best.objective_s * (1 + planner::rounding));
            }
        }
    }
}

void check_bounds(const Problem& p, planner::Options options) {
    const Solution best = planner::solve(p, options);
    if (best.status != Status::optimal) return;
    check_bounds_on(p, planner::make_tables(p, options, unlimited), best);
    if (p.order == Order::fixed) return;
    options.max_bitset_nodes = 0;
    planner::Tables t = planner::make_tables(p, options, unlimited);
    for (const int k : {1, 2, 3}) {
        CHECK(t.k_cycle == k);
        check_bounds_on(p, t, best);
        planner::extend_vertices(std::vector<char>(t.vertices(), 1), t);
    }
}

void check_root(const Problem& p, const planner::Options& options) {
    const planner::Tables t = planner::make_tables(p, options, unlimited);
    const planner::Relaxation least = planner::least_loss(t, unlimited);
    if (least.root > t.loss_limit) return;
    const planner::Root root =
        planner::explore_root(p, t, options.objective, least, unlimited, {}, options.max_bytes);
    const Solution best = planner::solve(p, options);
    if (best.status == Status::optimal && best.objective_s < root.incumbent.cutoff()) {
        CHECK(root.lower_bound_s <= best.objective_s * (1 + planner::rounding));
    }
}

// The bisected root, which solve() uses for large problems only: its bound holds, and a search from it finds the
// optimum.
void check_root_bisection(const Problem& p, const planner::Options& options) {
    const Solution best = planner::solve(p, options);
    if (best.status != Status::optimal) return;
    const planner::Tables t = planner::make_tables(p, options, unlimited);
    const planner::Relaxation least = planner::least_loss(t, unlimited);
    planner::Incumbent incumbent;
    incumbent.objective_s = 1.5 * best.objective_s + 0.1;
    for (const std::size_t max_bytes : {std::size_t{0}, std::size_t{100'000}}) {
        planner::Root root =
            planner::bisect_root(p, t, options.objective, least, unlimited, incumbent, 1e-3, max_bytes);
        CHECK(root.lower_bound_s <= best.objective_s * (1 + planner::rounding) ||
              root.incumbent.objective_s <= best.objective_s * (1 + planner::rounding));
        CHECK(planner::search(p, t, least, root, unlimited, 1'000'000).is_complete);
        CHECK(std::fabs(root.incumbent.objective_s - best.objective_s) <= 1e-9 * best.objective_s);
    }
}

// The bounds that pruning depends on, each of which must matter: one that is one percent too high loses optima.
enum class Broken { none, relaxation, loss_to_go, interval, vertices };

planner::Relaxation scaled(planner::Relaxation relaxation) {
    for (double& value : relaxation.to_go_departed) value *= 1.01;
    for (double& value : relaxation.to_go_arrived) value *= 1.01;
    return relaxation;
}

// A root of one interval, from an incumbent just worse than the optimum.
planner::Root root_with(const planner::Tables& t, const Solution& best, Broken broken) {
    planner::Root root;
    root.incumbent.objective_s = best.objective_s * (1 + 1e-6);
    for (const planner::Metric& metric : t.metrics) {
        planner::Interval whole;
        if (broken == Broken::interval) whole.low = 0.01 * best.objective_s;
        planner::Relaxation made = planner::relax(t, metric, infinity, 0, unlimited);
        if (broken == Broken::relaxation) made = scaled(std::move(made));
        whole.relaxations.push_back(std::make_shared<planner::Relaxation>(std::move(made)));
        root.intervals.emplace_back().push_back(std::move(whole));
    }
    return root;
}

// Searches with one bound broken; with k-cycle elimination, which drops vertices, for k = 1 to 4.
double search_with(const Problem& p, const Solution& best, Broken broken, int max_bitset_nodes) {
    planner::Options options;
    options.max_bitset_nodes = max_bitset_nodes;
    planner::Tables t = planner::make_tables(p, options, unlimited);
    for (int k = 1; !t.keys_are_exact && k <= 3; ++k) {
        const Broken in_vertices = broken == Broken::vertices ? Broken::interval : Broken::none;
        planner::extend_vertices(planner::promising_vertices(t, root_with(t, best, in_vertices), unlimited),
                                 t);
    }
    planner::Relaxation least = planner::least_loss(t, unlimited);
    planner::Root root = root_with(t, best, broken);
    if (broken == Broken::loss_to_go) least = scaled(std::move(least));
    CHECK(planner::search(p, t, least, root, unlimited, 1'000'000).is_complete);
    return root.incumbent.stages.empty() ? infinity : root.incumbent.objective_s;
}

void check_that_broken_bounds_lose_optima() {
    for (const Broken broken :
         {Broken::none, Broken::relaxation, Broken::loss_to_go, Broken::interval, Broken::vertices}) {
        std::mt19937 random(11);
        int lost = 0;
        for (int i = 0; i < 300; ++i) {
            Problem p = random_problem(random, i % 2 == 0 ? Order::fixed : Order::free);
            Solution best = solve(p);
            if (best.status != Status::optimal) continue;
            // A budget equal to the best plan's loss, and a single micro-batch, whose interval starts at zero.
            p.loss_budget = best.loss;
            if (broken == Broken::interval || broken == Broken::vertices) p.micro_batches = 1;
            best = solve(p);
            const int max_bitset_nodes = i % 4 == 1 ? 0 : 64;
            lost += search_with(p, best, broken, max_bitset_nodes) > best.objective_s * (1 + 1e-9);
        }
        CHECK((lost > 0) == (broken != Broken::none));
    }
}

// A stop at any call of the function leaves a true bound, and a plan or none: never a wrong proof.
void check_stop(const Problem& p, planner::Options options) {
    const Solution best = planner::solve(p, options);
    for (int calls = 0, made = 0; made == calls; calls += 1 + calls / 4) {
        made = 0;
        options.stop_requested = [&] { return made == calls || (++made, false); };
        const Solution stopped = planner::solve(p, options);
        CHECK(stopped.lower_bound_s <= best.objective_s * (1 + planner::rounding));
        CHECK(stopped.objective_s >= best.objective_s * (1 - planner::rounding));
        CHECK(stopped.stages.empty() || evaluate(p, stopped.stages).is_feasible);
        if (stopped.status == best.status) continue;
        CHECK(stopped.status == (stopped.stages.empty() ? Status::unknown : Status::feasible));
        CHECK(stopped.reason == "a stop was requested");
    }
}

void check_stops() {
    std::mt19937 random(5);
    for (int i = 0; i < 24; ++i) {
        Problem p = random_problem(random, i % 3 == 0 ? Order::fixed : Order::free, 12, 7);
        if (i % 4 == 3) p.loss_budget = 0.01;
        planner::Options options;
        options.max_bitset_nodes = i % 2 == 0 ? 64 : 0;
        if (i % 5 == 0) options.max_nodes = 3;
        check_stop(p, options);
    }
}

// Solves a problem that takes hours, with a stop requested after `delay`; checks that it ends soon after.
Solution stopped_after(std::chrono::milliseconds delay) {
    std::mt19937 random(3);
    Problem p = random_problem(random, Order::free, 80, 64);
    p.levels.resize(8, {"c", 5, 0.1, 0.1});
    p.loss.resize((p.layers.size() - 1) * p.levels.size(), 0.01);
    SolveOptions options;
    options.max_labels = 2'000'000'000;
    std::atomic<bool> is_requested = false;
    options.stop_requested = [&] { return is_requested.load(); };
    std::chrono::steady_clock::time_point requested;
    std::thread caller([&] {
        std::this_thread::sleep_for(delay);
        requested = std::chrono::steady_clock::now();
        is_requested = true;
    });
    Solution stopped = solve(p, options);
    const auto ended = std::chrono::steady_clock::now();
    caller.join();
    const double seconds = std::chrono::duration<double>(ended - requested).count();
    CHECK(seconds < 2);  // 0.02 on an idle machine
    CHECK(stopped.status == Status::feasible || stopped.status == Status::unknown);
    CHECK(stopped.reason == "a stop was requested");
    return stopped;
}

void check_stop_takes_effect() {
    // How long it takes to find a first chain depends on the machine, which may be emulated.
    std::chrono::milliseconds delay{500};
    const std::chrono::milliseconds limit{60'000};
    while (delay < limit && stopped_after(delay).status != Status::feasible) delay *= 2;
    CHECK(delay < limit);
}

}  // namespace

int main() {
    check_that_broken_bounds_lose_optima();
    check_stops();
    check_stop_takes_effect();
    check_solution();
    check_infeasible();
    check_options();
    check_prepared();
    std::mt19937 random(7);
    for (int i = 0; i < 400; ++i) {
        const Problem p = random_problem(random, i % 2 == 0 ? Order::fixed : Order::free);
        for (const int max_ng_size : {0, 2, 16}) {
            planner::Options options;
            options.max_ng_size = max_ng_size;
            options.objective = static_cast<Objective>(random() % (generates(p) ? 4 : 3));
            if (random() % 2 == 0) options.max_nodes = 1 + static_cast<int>(random() % 4);
            check_bounds(p, options);
            check_root(p, options);
            check_root_bisection(p, options);
        }
    }
    return failures;
}
