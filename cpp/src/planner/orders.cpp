#include "planner/orders.hpp"

#include <algorithm>
#include <numeric>

namespace orbitsplit::planner {

namespace {

using NodeOrder = std::vector<int>;

std::vector<double> permuted_rows(const std::vector<double>& values, const NodeOrder& order,
                                  std::size_t width) {
    std::vector<double> result;
    if (values.empty()) return result;
    for (int node : order)
        result.insert(result.end(), values.begin() + node * width, values.begin() + (node + 1) * width);
    return result;
}

std::vector<double> permuted_square(const std::vector<double>& values, const NodeOrder& order) {
    std::vector<double> result;
    for (int from : order) {
        for (int to : order) result.push_back(values[from * order.size() + to]);
    }
    return result;
}

// The same problem with its nodes renumbered and their order fixed.
Problem in_order(const Problem& problem, const NodeOrder& order) {
    std::vector<int> position(order.size());
    for (std::size_t k = 0; k < order.size(); ++k) position[order[k]] = static_cast<int>(k);
    Problem result = problem;
    result.order = Order::fixed;
    for (std::size_t k = 0; k < order.size(); ++k) result.nodes[k] = problem.nodes[order[k]];
    result.layer_time_s = permuted_rows(problem.layer_time_s, order, problem.layers.size());
    result.layer_decode_time_s = permuted_rows(problem.layer_decode_time_s, order, problem.layers.size());
    result.bandwidth_bytes_per_s = permuted_square(problem.bandwidth_bytes_per_s, order);
    result.latency_s = permuted_square(problem.latency_s, order);
    for (std::optional<ExternalLink>* link : {&result.ingress, &result.egress}) {
        if (!*link) continue;
        (*link)->bandwidth_bytes_per_s = permuted_rows((*link)->bandwidth_bytes_per_s, order, 1);
        (*link)->latency_s = permuted_rows((*link)->latency_s, order, 1);
    }
    for (Pin& pin : result.pins.layers) pin.node = position[pin.node];
    for (int& node : result.pins.required) node = position[node];
    for (int& node : result.pins.forbidden) node = position[node];
    return result;
}

class OrderSearch {
  public:
    OrderSearch(const Problem& problem, const SolveOptions& options, const Clock& clock, Incumbent& incumbent)
        : problem_(problem), options_(options), clock_(clock), incumbent_(incumbent) {}

    void run() {
        if (incumbent_.stages.empty()) find_any();
        if (incumbent_.stages.empty()) return;
        NodeOrder order = order_of_incumbent();
        while (!clock_.is_over() && improve(order)) order = order_of_incumbent();
    }

  private:
    // Explores one order; true if it holds a better plan than the incumbent.
    bool attempt(const NodeOrder& order) {
        const Problem fixed = in_order(problem_, order);
        const Tables t = make_tables(fixed, options_);
        const Relaxation least = least_loss(t);
        if (least.root > t.loss_limit) return false;
        Incumbent found = explore_root(fixed, t, options_.objective, least, clock_,
                                       {incumbent_.objective_s, {}, incumbent_.gap})
                              .incumbent;
        if (found.stages.empty()) return false;
        for (Stage& stage : found.stages) stage.node = order[stage.node];
        incumbent_ = std::move(found);
        return true;
    }

    void find_any() {
        NodeOrder order(problem_.nodes.size());
        std::iota(order.begin(), order.end(), 0);
        if (attempt(order)) return;
        for (int first = 0; first < static_cast<int>(order.size()); ++first) {
            if (attempt(chain_from(first)) || clock_.is_over()) return;
        }
    }

    // Follows the fastest link to a node not yet in the chain; where none leads on, the next node by index.
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

    // Moves every node to every other place, then swaps every pair, up to the first change that helps.
    bool improve(const NodeOrder& order) {
        const std::size_t nodes = order.size();
        for (std::size_t from = 0; from < nodes; ++from) {
            for (std::size_t to = 0; to < nodes; ++to) {
                if (from == to) continue;
                NodeOrder moved = order;
                moved.erase(moved.begin() + static_cast<std::ptrdiff_t>(from));
                moved.insert(moved.begin() + static_cast<std::ptrdiff_t>(to), order[from]);
                if (attempt(moved)) return true;
                if (clock_.is_over()) return false;
            }
        }
        for (std::size_t a = 0; a < nodes; ++a) {
            for (std::size_t b = a + 2; b < nodes; ++b) {
                NodeOrder swapped = order;
                std::swap(swapped[a], swapped[b]);
                if (attempt(swapped)) return true;
                if (clock_.is_over()) return false;
            }
        }
        return false;
    }

    const Problem& problem_;
    const SolveOptions& options_;
    const Clock& clock_;
    Incumbent& incumbent_;
};

}  // namespace

void improve_by_orders(const Problem& problem, const SolveOptions& options, const Clock& clock,
                       Incumbent& incumbent) {
    OrderSearch(problem, options, clock, incumbent).run();
}

}  // namespace orbitsplit::planner
