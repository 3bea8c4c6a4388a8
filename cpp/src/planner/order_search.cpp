#include "planner/order_search.hpp"

#include <algorithm>
#include <numeric>
#include <utility>

#include "planner/cost.hpp"

namespace orbitsplit::planner {

namespace {

using NodeOrder = std::vector<int>;

// The rows of these nodes in each of some blocks.
std::vector<double> rows_of_nodes(const std::vector<double>& values, const NodeOrder& nodes,
                                  std::size_t width, std::size_t blocks = 1) {
    std::vector<double> result;
    const std::size_t block = values.size() / blocks;
    for (std::size_t first = 0; first < values.size(); first += block) {
        for (int node : nodes) {
            const auto row = values.begin() + static_cast<std::ptrdiff_t>(first + node * width);
            result.insert(result.end(), row, row + static_cast<std::ptrdiff_t>(width));
        }
    }
    return result;
}

std::vector<double> permuted_square(const std::vector<double>& values, const NodeOrder& order,
                                    std::size_t width) {
    std::vector<double> result;
    for (int source : order) {
        for (int destination : order) result.push_back(values[source * width + destination]);
    }
    return result;
}

// The same problem with only these nodes, in this order. Nodes that pins require must be among them.
Problem in_order(const Problem& problem, Problem node_free, const NodeOrder& order) {
    std::vector<int> position(problem.nodes.size(), -1);
    for (std::size_t k = 0; k < order.size(); ++k) position[order[k]] = static_cast<int>(k);
    Problem result = std::move(node_free);
    result.order = Order::fixed;
    for (int node : order) result.nodes.push_back(problem.nodes[node]);
    copy_times_of_nodes(problem, order, result);
    const std::size_t nodes = problem.nodes.size();
    result.bandwidth_bytes_per_s = permuted_square(problem.bandwidth_bytes_per_s, order, nodes);
    result.latency_s = permuted_square(problem.latency_s, order, nodes);
    const auto permuted = [&](const std::optional<ExternalLink>& link) -> std::optional<ExternalLink> {
        if (!link) return std::nullopt;
        return ExternalLink{link->bytes, rows_of_nodes(link->bandwidth_bytes_per_s, order, 1),
                            rows_of_nodes(link->latency_s, order, 1)};
    };
    result.ingress = permuted(problem.ingress);
    result.egress = permuted(problem.egress);
    for (Pin& pin : result.pins.layers) pin.node = position[pin.node];
    for (int& node : result.pins.required) node = position[node];
    for (int& node : result.pins.forbidden) node = position[node];
    std::erase(result.pins.forbidden, -1);
    return result;
}

// Tries orders of all nodes, or of some, against an incumbent.
class Attempts {
  public:
    Attempts(const Problem& problem, const Options& options, const TimeLimit& time_limit,
             Incumbent& incumbent)
        : problem_(problem),
          node_free_(without_nodes(problem)),
          options_(options),
          time_limit_(time_limit),
          incumbent_(incumbent) {}

    // Explores one order; true if it holds a better plan than the incumbent.
    bool attempt(const NodeOrder& order) {
        const Problem fixed = in_order(problem_, node_free_, order);
        const Tables t = make_tables(fixed, options_, time_limit_);
        const Relaxation least = least_loss(t, time_limit_);
        if (least.root > t.loss_limit) return false;
        Incumbent found = explore_root(fixed, t, options_.objective, least, time_limit_,
                                       {incumbent_.objective_s, {}, incumbent_.gap}, options_.max_bytes / 2)
                              .incumbent;
        if (found.stages.empty()) return false;
        for (Stage& stage : found.stages) stage.node = order[stage.node];
        incumbent_ = std::move(found);
        return true;
    }

  private:
    const Problem& problem_;
    const Problem node_free_;
    const Options& options_;
    const TimeLimit& time_limit_;
    Incumbent& incumbent_;
};

class OrderSearch {
  public:
    OrderSearch(const Problem& problem, const Options& options, const TimeLimit& time_limit, int most_orders,
                Incumbent& incumbent)
        : problem_(problem),
          time_limit_(time_limit),
          incumbent_(incumbent),
          orders_left_(most_orders),
          attempts_(problem, options, time_limit, incumbent) {}

    void run() {
        if (incumbent_.stages.empty()) find_any();
        if (incumbent_.stages.empty()) return;
        NodeOrder order = order_of_incumbent();
        while (!is_over() && improve(order)) order = order_of_incumbent();
    }

  private:
    void find_any() {
        NodeOrder order(problem_.nodes.size());
        std::iota(order.begin(), order.end(), 0);
        if (attempts_.attempt(order)) return;
        for (int first = 0; first < static_cast<int>(order.size()); ++first) {
            if (attempts_.attempt(chain_from(first)) || time_limit_.is_reached()) return;
        }
    }

    // Follows the fastest link to a node that is not in the chain; without such a link, the next node by index.
    NodeOrder chain_from(int first) const {
        const int nodes = static_cast<int>(problem_.nodes.size());
        NodeOrder chain{first};
        std::vector<char> used(nodes, 0);
        used[first] = 1;
        while (static_cast<int>(chain.size()) < nodes) {
            int choice = -1;
            for (int n = 0; n < nodes; ++n) {
                const double* links = problem_.bandwidth_bytes_per_s.data() + chain.back() * nodes;
                if (!used[n] && (choice < 0 || links[n] > links[choice])) choice = n;
            }
            used[choice] = 1;
            chain.push_back(choice);
        }
        return chain;
    }

    // The incumbent's nodes in its order, then the others by index.
    NodeOrder order_of_incumbent() const {
        NodeOrder order;
        for (const Stage& stage : incumbent_.stages) order.push_back(stage.node);
        for (int n = 0; n < static_cast<int>(problem_.nodes.size()); ++n) {
            if (std::find(order.begin(), order.end(), n) == order.end()) order.push_back(n);
        }
        return order;
    }

    // Counts one more order.
    bool is_over() { return orders_left_-- <= 0 || time_limit_.is_reached(); }

    // Moves every node to every other position, then swaps every pair, until a change helps.
    bool improve(const NodeOrder& order) {
        const std::size_t nodes = order.size();
        for (std::size_t source = 0; source < nodes; ++source) {
            for (std::size_t destination = 0; destination < nodes; ++destination) {
                if (source == destination) continue;
                NodeOrder moved = order;
                moved.erase(moved.begin() + static_cast<std::ptrdiff_t>(source));
                moved.insert(moved.begin() + static_cast<std::ptrdiff_t>(destination), order[source]);
                if (attempts_.attempt(moved)) return true;
                if (is_over()) return false;
            }
        }
        for (std::size_t a = 0; a < nodes; ++a) {
            for (std::size_t b = a + 2; b < nodes; ++b) {
                NodeOrder swapped = order;
                std::swap(swapped[a], swapped[b]);
                if (attempts_.attempt(swapped)) return true;
                if (is_over()) return false;
            }
        }
        return false;
    }

    const Problem& problem_;
    const TimeLimit& time_limit_;
    Incumbent& incumbent_;
    int orders_left_;
    Attempts attempts_;
};

// Changes of a chain by one node, along links.
class ChainSearch {
  public:
    ChainSearch(const Problem& problem, const Options& options, const TimeLimit& time_limit,
                Incumbent& incumbent)
        : time_limit_(time_limit), incumbent_(incumbent), attempts_(problem, options, time_limit, incumbent) {
        const int nodes = static_cast<int>(problem.nodes.size());
        most_ = std::min<std::size_t>(nodes, problem.layers.size());
        if (options.max_nodes) most_ = std::min<std::size_t>(most_, *options.max_nodes);
        is_allowed_.assign(nodes, 1);
        must_stay_.assign(nodes, 0);
        for (int node : problem.pins.forbidden) is_allowed_[node] = 0;
        for (int node : problem.pins.required) must_stay_[node] = 1;
        for (const Pin& pin : problem.pins.layers) must_stay_[pin.node] = 1;
        after_.resize(nodes);
        before_.resize(nodes);
        for (int source = 0; source < nodes; ++source) {
            const double* links =
                problem.bandwidth_bytes_per_s.data() + static_cast<std::size_t>(source) * nodes;
            for (int destination = 0; destination < nodes; ++destination) {
                if (links[destination] <= 0 || source == destination || !is_allowed_[source] ||
                    !is_allowed_[destination])
                    continue;
                after_[source].push_back(destination);
                before_[destination].push_back(source);
            }
        }
    }

    void run() {
        while (!incumbent_.stages.empty() && !time_limit_.is_reached() && improve()) {
        }
    }

  private:
    // Tries all changes until one helps.
    bool improve() {
        NodeOrder chain;
        for (const Stage& stage : incumbent_.stages) chain.push_back(stage.node);
        for (std::size_t at = 0; at <= chain.size(); ++at) {
            for (std::size_t dropped = 0; dropped <= 1; ++dropped) {
                if (at + dropped > chain.size()) continue;
                if (dropped == 1 && must_stay_[chain[at]]) continue;
                if (exchange(chain, at, dropped)) return true;
            }
        }
        return shift(chain);
    }

    // Replaces `dropped` nodes by any other node, or by none.
    bool exchange(const NodeOrder& chain, std::size_t at, std::size_t dropped) {
        NodeOrder left(chain.begin(), chain.begin() + static_cast<std::ptrdiff_t>(at));
        const NodeOrder right(chain.begin() + static_cast<std::ptrdiff_t>(at + dropped), chain.end());
        if (dropped == 1 && joined(left, {}, right)) return true;
        const NodeOrder& candidates =
            left.empty() ? (right.empty() ? left : before_[right.front()]) : after_[left.back()];
        for (int node : candidates) {
            if (is_new(chain, node) && joined(left, {node}, right)) return true;
        }
        return false;
    }

    // Shifts the chain by one node, forwards or backwards.
    bool shift(const NodeOrder& chain) {
        if (chain.size() < 2) return false;
        const NodeOrder head(chain.begin(), chain.end() - 1);
        const NodeOrder tail(chain.begin() + 1, chain.end());
        for (int node : after_[chain.back()]) {
            if (is_new(chain, node) && !must_stay_[chain.front()] && joined(tail, {node}, {})) return true;
        }
        for (int node : before_[chain.front()]) {
            if (is_new(chain, node) && !must_stay_[chain.back()] && joined({}, {node}, head)) return true;
        }
        return false;
    }

    static bool is_new(const NodeOrder& chain, int node) {
        return std::find(chain.begin(), chain.end(), node) == chain.end();
    }

    // Tries a chain of three parts if its parts are linked; true if it holds a better plan.
    bool joined(NodeOrder chain, const NodeOrder& middle, const NodeOrder& right) {
        for (const NodeOrder& part : {middle, right}) {
            if (!chain.empty() && !part.empty()) {
                const NodeOrder& next = after_[chain.back()];
                if (!std::binary_search(next.begin(), next.end(), part.front())) return false;
            }
            chain.insert(chain.end(), part.begin(), part.end());
        }
        if (chain.empty() || chain.size() > most_ || time_limit_.is_reached()) return false;
        return attempts_.attempt(chain);
    }

    const TimeLimit& time_limit_;
    Incumbent& incumbent_;
    Attempts attempts_;
    std::size_t most_ = 0;
    std::vector<char> is_allowed_;
    std::vector<char> must_stay_;
    std::vector<NodeOrder> after_;
    std::vector<NodeOrder> before_;
};

}  // namespace

Problem without_nodes(const Problem& problem) {
    Problem result;
    result.layers = problem.layers;
    result.layer_memory_bytes = problem.layer_memory_bytes;
    result.cut_bytes = problem.cut_bytes;
    result.cut_decode_bytes = problem.cut_decode_bytes;
    result.levels = problem.levels;
    result.loss = problem.loss;
    result.loss_budget = problem.loss_budget;
    result.weight_levels = problem.weight_levels;
    result.weight_loss = problem.weight_loss;
    result.micro_batches = problem.micro_batches;
    result.new_tokens = problem.new_tokens;
    result.groups = problem.groups;
    result.tokens_per_step = problem.tokens_per_step;
    result.latency_occupies_link = problem.latency_occupies_link;
    result.pins = problem.pins;
    return result;
}

void copy_times_of_nodes(const Problem& problem, const std::vector<int>& nodes, Problem& result) {
    const std::size_t layers = problem.layers.size();
    const std::size_t blocks = weight_level_count(problem);
    result.layer_time_s = rows_of_nodes(problem.layer_time_s, nodes, layers, blocks);
    result.layer_earlier_time_s = rows_of_nodes(problem.layer_earlier_time_s, nodes, layers, blocks);
    result.layer_decode_time_s = rows_of_nodes(problem.layer_decode_time_s, nodes, layers, blocks);
    result.stage_overhead_s = rows_of_nodes(problem.stage_overhead_s, nodes, 1, blocks);
    result.stage_decode_overhead_s = rows_of_nodes(problem.stage_decode_overhead_s, nodes, 1, blocks);
}

void improve_by_orders(const Problem& problem, const Options& options, const TimeLimit& time_limit,
                       int most_orders, Incumbent& incumbent) {
    OrderSearch(problem, options, time_limit, most_orders, incumbent).run();
}

void improve_by_chains(const Problem& problem, const Options& options, const TimeLimit& time_limit,
                       Incumbent& incumbent) {
    ChainSearch(problem, options, time_limit, incumbent).run();
}

}  // namespace orbitsplit::planner
