#include "planner/infeasible.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "planner/cost.hpp"
#include "support/text.hpp"

namespace orbitsplit::planner {

namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();

std::string node_name(const Problem& problem, int node) {
    return "node \"" + problem.nodes[node].name + "\"";
}

// "at most 3 " for max_nodes = 3, else "".
std::string at_most(const Options& options) {
    return options.max_nodes ? "at most " + std::to_string(*options.max_nodes) + " " : "";
}

bool is_forbidden(const Problem& problem, int node) {
    const std::vector<int>& forbidden = problem.pins.forbidden;
    return std::find(forbidden.begin(), forbidden.end(), node) != forbidden.end();
}

bool is_absent(double loss) { return std::isinf(loss); }

// The least memory of each layer at the weight levels that it has, infinite if it has none.
std::vector<double> least_memory_bytes(const Problem& problem) {
    const std::size_t layers = problem.layers.size();
    if (problem.weight_levels.empty()) return problem.layer_memory_bytes;
    std::vector<double> least(layers, infinity);
    for (std::size_t i = 0; i < problem.layer_memory_bytes.size(); ++i) {
        if (!is_absent(problem.weight_loss[i]))
            least[i % layers] = std::min(least[i % layers], problem.layer_memory_bytes[i]);
    }
    return least;
}

// The most that all layers need at any weight level.
double most_memory_bytes(const Problem& problem) {
    const std::size_t layers = problem.layers.size();
    double most = 0;
    double total = 0;
    for (std::size_t i = 0; i < problem.layer_memory_bytes.size(); ++i) {
        total = i % layers == 0 ? problem.layer_memory_bytes[i] : total + problem.layer_memory_bytes[i];
        most = std::max(most, total);
    }
    return most;
}

// A layer that no node it may run on can hold, or "".
std::string explain_layer(const Problem& problem) {
    std::vector<int> pinned(problem.layers.size(), -1);
    for (const Pin& pin : problem.pins.layers) pinned[pin.layer] = pin.node;
    double largest = -infinity;
    for (std::size_t n = 0; n < problem.nodes.size(); ++n) {
        if (!is_forbidden(problem, static_cast<int>(n))) {
            largest = std::max(largest, usable_memory_bytes(problem.nodes[n]));
        }
    }
    if (largest == -infinity) return "every node is forbidden";
    const std::vector<double> least = least_memory_bytes(problem);
    for (std::size_t i = 0; i < problem.layers.size(); ++i) {
        const double need = least[i];
        const std::string name = "layer " + std::to_string(i) + " (\"" + problem.layers[i] + "\")";
        if (need == infinity) return name + " does not have any weight level";
        const std::string fact = name + " needs ";
        if (need > largest)
            return fact + text::bytes(need, largest) + ", the largest node has " + text::bytes(largest, need);
        if (pinned[i] < 0) continue;
        const double usable = usable_memory_bytes(problem.nodes[pinned[i]]);
        if (need > usable) {
            return fact + text::bytes(need, usable) + ", " + node_name(problem, pinned[i]) +
                   " to which it is pinned has " + text::bytes(usable, need);
        }
    }
    return "";
}

// More memory in all layers than in all nodes, or "".
std::string explain_total(const Problem& problem) {
    double need = 0;
    for (double bytes : least_memory_bytes(problem)) need += bytes;
    double held = 0;
    for (std::size_t n = 0; n < problem.nodes.size(); ++n) {
        if (!is_forbidden(problem, static_cast<int>(n))) held += usable_memory_bytes(problem.nodes[n]);
    }
    if (need <= held * (1 + 1e-12)) return "";  // equal up to rounding
    return "the layers need " + text::bytes(need, held) + " together, the nodes hold " +
           text::bytes(held, need);
}

double least_loss_with(const Problem& problem, const Options& options, const TimeLimit& time_limit,
                       double relief_bytes) {
    return least_loss(make_tables(problem, options, time_limit, relief_bytes), time_limit).root;
}

// Whether no node can repeat in relaxed plans: then memory, links and loss of some plan are theirs.
bool is_exact(const Tables& t) { return !t.is_free || t.ng_size == t.nodes; }

// The least additional memory on every node with which some chain of linked nodes holds the layers, or "" if none
// does.
std::string explain_memory(const Problem& problem, const Tables& t, const Options& options,
                           const TimeLimit& time_limit) {
    const std::string fact =
        "no chain of " + at_most(options) + "linked nodes holds the layers in their order";
    double enough = most_memory_bytes(problem);
    if (least_loss_with(problem, options, time_limit, enough) == infinity) return "";
    double too_little = 0;
    while (enough - too_little > std::max(1.0, 1e-9 * enough)) {
        const double middle = too_little + (enough - too_little) / 2;
        const bool is_enough = least_loss_with(problem, options, time_limit, middle) < infinity;
        if (time_limit.is_reached()) return fact;
        (is_enough ? enough : too_little) = middle;
    }
    const std::string more = text::bytes(std::ceil(enough)) + " more on every node";
    return fact + "; " + (is_exact(t) ? more + " would" : "it takes at least " + more);
}

// That plans would fit if all cuts had all levels, or "".
std::string explain_levels(const Problem& problem, const Options& options, const TimeLimit& time_limit) {
    if (std::none_of(problem.loss.begin(), problem.loss.end(), is_absent)) return "";
    Problem with_all_levels = problem;
    with_all_levels.loss.assign(problem.loss.size(), 0);
    if (least_loss_with(with_all_levels, options, time_limit, 0) == infinity || time_limit.is_reached())
        return "";
    return "no plan that fits has a level at each of its cuts: a cut does not have the levels whose loss is "
           "infinite there";
}

// That plans would fit if all layers had all weight levels, or "".
std::string explain_weight_levels(const Problem& problem, const Options& options,
                                  const TimeLimit& time_limit) {
    if (std::none_of(problem.weight_loss.begin(), problem.weight_loss.end(), is_absent)) return "";
    Problem with_all_levels = problem;
    with_all_levels.weight_loss.assign(problem.weight_loss.size(), 0);
    if (least_loss_with(with_all_levels, options, time_limit, 0) == infinity || time_limit.is_reached())
        return "";
    return "no plan that fits has a weight level for each of its stages: a layer does not have the weight "
           "levels "
           "whose loss is infinite there";
}

// Whether there are no links at all although a plan could use one.
bool lacks_links(const Problem& problem, const Tables& t) {
    return problem.nodes.size() > 1 && t.neighbour.empty() && t.most_stages > 1;
}

std::string explain_links(const Problem& problem, const Options& options, const Tables& t) {
    if (std::none_of(t.can_start.begin(), t.can_start.end(), [](char open) { return open != 0; })) {
        return "no node may be first: ingress reaches none that the pins allow";
    }
    if (std::none_of(t.can_end.begin(), t.can_end.end(), [](char open) { return open != 0; })) {
        return "no node may be last: egress leaves none that the pins allow";
    }
    if (lacks_links(problem, t)) {
        return "no link joins any two nodes that may follow each other, and no node alone may run every "
               "layer";
    }
    return "no chain of " + at_most(options) +
           "linked nodes joins those that ingress, egress and pins ask for, whatever their memory";
}

}  // namespace

std::string trivially_infeasible(const Problem& problem) {
    const std::string reason = explain_layer(problem);
    return reason.empty() ? explain_total(problem) : reason;
}

std::string explain_infeasible(const Problem& problem, const Tables& t, const Relaxation& least,
                               const Options& options, const TimeLimit& time_limit) {
    const std::string trivial = trivially_infeasible(problem);
    if (!trivial.empty()) return trivial;
    if (least.root == infinity) {
        if (problem.levels.empty() && problem.nodes.size() > 1 && t.most_stages > 1) {
            return "no node alone may run every layer, and levels is empty: a cut between two stages needs a "
                   "level";
        }
        std::string reason = explain_levels(problem, options, time_limit);
        if (reason.empty()) reason = explain_weight_levels(problem, options, time_limit);
        if (reason.empty() && !lacks_links(problem, t))
            reason = explain_memory(problem, t, options, time_limit);
        return reason.empty() ? explain_links(problem, options, t) : reason;
    }
    const double budget = problem.loss_budget.value_or(0);
    if (least.root > t.loss_limit) {
        return std::string("the smallest loss any plan that fits reaches is ") +
               (is_exact(t) ? "" : "at least ") + text::number(least.root, budget) + ", the budget is " +
               text::number(budget, least.root);
    }
    if (t.needs_return) {
        Problem prefill_only = problem;
        prefill_only.new_tokens = 0;
        Options for_any = options;
        for_any.objective = Objective::latency;
        for_any.time_limit_s = time_limit.remaining_s();
        if (!solve(prefill_only, for_any).stages.empty()) {
            return "no plan that fits can return its tokens from the last node to the first: links lead one "
                   "way only";
        }
    }
    std::string limits = "memory, links and pins";
    if (problem.loss_budget) limits += " and a loss budget of " + text::number(*problem.loss_budget);
    return (options.max_nodes ? "no chain of " + at_most(options) + "linked nodes keeps "
                              : "no plan keeps ") +
           limits + " together";
}

}  // namespace orbitsplit::planner
