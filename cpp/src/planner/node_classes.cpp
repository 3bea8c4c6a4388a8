#include "planner/node_classes.hpp"

#include <algorithm>
#include <map>
#include <utility>

#include "planner/cost.hpp"
#include "planner/order_search.hpp"

namespace orbitsplit::planner {

namespace {

constexpr std::size_t most_layered_nodes = 256;
constexpr std::size_t most_labels_of_classes = 200'000;
constexpr std::size_t most_chain_steps = 20'000;  // when a chain of given classes is looked for

struct Kind {
    double bandwidth = 0;  // 0: no link
    double latency = 0;
};

double bandwidth_between(const Problem& problem, int source, int destination) {
    return problem.bandwidth_bytes_per_s[source * problem.nodes.size() + destination];
}

double latency_between(const Problem& problem, int source, int destination) {
    return problem.latency_s[source * problem.nodes.size() + destination];
}

// What a node is, its links left out.
std::vector<double> attributes(const Problem& problem, int node) {
    const ProblemNode& of = problem.nodes[node];
    const auto is_forbidden = std::count(problem.pins.forbidden.begin(), problem.pins.forbidden.end(), node);
    std::vector<double> values{usable_memory_bytes(of), of.half_duplex ? 1.0 : 0.0,
                               is_forbidden > 0 ? 1.0 : 0.0};
    Problem own;
    copy_times_of_nodes(problem, {node}, own);
    for (const auto* times : {&own.layer_time_s, &own.layer_earlier_time_s, &own.layer_decode_time_s,
                              &own.stage_overhead_s, &own.stage_decode_overhead_s})
        values.insert(values.end(), times->begin(), times->end());
    for (const auto* link : {&problem.ingress, &problem.egress}) {
        if (!*link) continue;
        values.push_back((*link)->bandwidth_bytes_per_s[node]);
        values.push_back((*link)->latency_s[node]);
    }
    return values;
}

// Numbers equal values alike, in the order of their first occurrence.
class Numbering {
  public:
    int number(std::vector<double> values) {
        return numbers_.try_emplace(std::move(values), static_cast<int>(numbers_.size())).first->second;
    }
    std::size_t count() const { return numbers_.size(); }

  private:
    std::map<std::vector<double>, int> numbers_;
};

// The class of a node and the kinds of its links to each class.
std::vector<double> signature(const Problem& problem, int node, const std::vector<int>& classes) {
    std::vector<std::vector<double>> links;
    for (int other = 0; other < static_cast<int>(classes.size()); ++other) {
        const double bandwidth = bandwidth_between(problem, node, other);
        if (other != node && bandwidth > 0)
            links.push_back({double(classes[other]), bandwidth, latency_between(problem, node, other)});
    }
    std::sort(links.begin(), links.end());
    links.erase(std::unique(links.begin(), links.end()), links.end());
    std::vector<double> values{double(classes[node])};
    for (const auto& link : links) values.insert(values.end(), link.begin(), link.end());
    return values;
}

// The layered problem, and a chain of nodes for a walk in it.
class Layered {
  public:
    Layered(const Problem& problem, const std::vector<int>& classes, int positions)
        : problem_(problem),
          classes_(classes),
          count_(*std::max_element(classes.begin(), classes.end()) + 1),
          positions_(positions) {
        for (int c = 0; c < count_; ++c) {
            const auto first = std::find(classes.begin(), classes.end(), c);
            first_of_.push_back(static_cast<int>(first - classes.begin()));
        }
        for (int c = 0; c < count_; ++c) fill_kinds(first_of_[c]);
    }

    Problem problem() const {
        Problem result = without_nodes(problem_);
        result.order = Order::fixed;
        result.pins = {};
        std::vector<int> nodes;
        for (int at = 0; at < positions_ * count_; ++at) {
            nodes.push_back(node_at(at));
            result.nodes.push_back(problem_.nodes[nodes.back()]);
            result.nodes.back().name = std::to_string(at);
        }
        copy_times_of_nodes(problem_, nodes, result);
        fill_links(result);
        result.ingress = first_position(problem_.ingress);
        result.egress = every_position(problem_.egress);
        for (int at = 0; at < positions_ * count_; ++at) {
            const auto& forbidden = problem_.pins.forbidden;
            if (std::find(forbidden.begin(), forbidden.end(), node_at(at)) != forbidden.end())
                result.pins.forbidden.push_back(at);
        }
        return result;
    }

    // Stages of the layered problem on a chain of nodes that repeats none; empty if none was found. Of several chains
    // the one with the smallest first node, then second node, and so on.
    std::vector<Stage> lifted(std::vector<Stage> stages) const {
        std::vector<int> chain;
        std::size_t steps = 0;
        if (!extend(stages, chain, steps)) return {};
        for (std::size_t k = 0; k < stages.size(); ++k) stages[k].node = chain[k];
        return stages;
    }

  private:
    int node_at(int at) const { return first_of_[at % count_]; }

    // The best link of a node to each class. Of links of which none is best in both, the best of each bounds both.
    void fill_kinds(int node) {
        std::vector<Kind> kinds(count_);
        for (int other = 0; other < static_cast<int>(classes_.size()); ++other) {
            const double bandwidth = bandwidth_between(problem_, node, other);
            if (other == node || bandwidth <= 0) continue;
            Kind& kind = kinds[classes_[other]];
            const double latency = latency_between(problem_, node, other);
            kind.latency = kind.bandwidth > 0 ? std::min(kind.latency, latency) : latency;
            kind.bandwidth = std::max(kind.bandwidth, bandwidth);
        }
        kinds_.insert(kinds_.end(), kinds.begin(), kinds.end());
    }

    const Kind& kind(int source_class, int destination_class) const {
        return kinds_[static_cast<std::size_t>(source_class) * count_ + destination_class];
    }

    void fill_links(Problem& result) const {
        const std::size_t nodes = result.nodes.size();
        result.bandwidth_bytes_per_s.assign(nodes * nodes, 0);
        result.latency_s.assign(nodes * nodes, 0);
        for (int source = 0; source < (positions_ - 1) * count_; ++source) {
            for (int c = 0; c < count_; ++c) {
                const std::size_t link = source * nodes + (source / count_ + 1) * count_ + c;
                result.bandwidth_bytes_per_s[link] = kind(source % count_, c).bandwidth;
                result.latency_s[link] = kind(source % count_, c).latency;
            }
        }
    }

    // A chain starts at the first position.
    std::optional<ExternalLink> first_position(const std::optional<ExternalLink>& link) const {
        ExternalLink result{link ? link->bytes : 0, {}, {}};
        for (int at = 0; at < positions_ * count_; ++at) {
            const double bandwidth = link ? link->bandwidth_bytes_per_s[node_at(at)] : 1;
            result.bandwidth_bytes_per_s.push_back(at < count_ ? bandwidth : 0);
            result.latency_s.push_back(link ? link->latency_s[node_at(at)] : 0);
        }
        return result;
    }

    std::optional<ExternalLink> every_position(const std::optional<ExternalLink>& link) const {
        if (!link) return std::nullopt;
        ExternalLink result{link->bytes, {}, {}};
        for (int at = 0; at < positions_ * count_; ++at) {
            result.bandwidth_bytes_per_s.push_back(link->bandwidth_bytes_per_s[node_at(at)]);
            result.latency_s.push_back(link->latency_s[node_at(at)]);
        }
        return result;
    }

    // Depth first.
    bool extend(const std::vector<Stage>& stages, std::vector<int>& chain, std::size_t& steps) const {
        if (chain.size() == stages.size()) return true;
        const int wanted = stages[chain.size()].node % count_;
        for (int node = 0; node < static_cast<int>(classes_.size()); ++node) {
            if (classes_[node] != wanted || !may_follow(chain, node)) continue;
            if (++steps > most_chain_steps) return false;
            chain.push_back(node);
            if (extend(stages, chain, steps)) return true;
            chain.pop_back();
        }
        return false;
    }

    bool may_follow(const std::vector<int>& chain, int node) const {
        if (chain.empty()) return true;
        if (std::find(chain.begin(), chain.end(), node) != chain.end()) return false;
        const Kind& wanted = kind(classes_[chain.back()], classes_[node]);
        return bandwidth_between(problem_, chain.back(), node) == wanted.bandwidth &&
               latency_between(problem_, chain.back(), node) == wanted.latency;
    }

    const Problem& problem_;
    const std::vector<int>& classes_;
    const int count_;
    const int positions_;
    std::vector<int> first_of_;  // classes
    std::vector<Kind> kinds_;    // classes x classes
};

}  // namespace

std::vector<int> node_classes(const Problem& problem, std::size_t most, const TimeLimit& time_limit) {
    const int nodes = static_cast<int>(problem.nodes.size());
    std::vector<int> classes(nodes);
    Numbering first;
    for (int n = 0; n < nodes; ++n) classes[n] = first.number(attributes(problem, n));
    for (std::size_t count = 0, refined = first.count(); refined > count && refined <= most;) {
        count = refined;
        Numbering finer;
        std::vector<int> next(nodes);
        for (int n = 0; n < nodes && finer.count() <= most; ++n) {
            if (time_limit.must_end_after(nodes)) return {};
            next[n] = finer.number(signature(problem, n, classes));
        }
        refined = finer.count();
        if (refined == count) return classes;
        classes = std::move(next);
    }
    return {};
}

ClassBound bound_by_classes(const Problem& problem, const Options& options, const TimeLimit& time_limit,
                            Incumbent& incumbent) {
    const std::size_t nodes = problem.nodes.size();
    std::size_t positions = std::min(nodes, problem.layers.size());
    if (options.max_nodes) positions = std::min<std::size_t>(positions, *options.max_nodes);
    const std::size_t most = std::min(most_layered_nodes / positions, nodes - 1);
    if (generates(problem) || !problem.pins.layers.empty() || !problem.pins.required.empty()) return {};
    const std::vector<int> classes = node_classes(problem, most, time_limit);
    if (classes.empty()) return {};
    const Layered layered(problem, classes, static_cast<int>(positions));
    Options inner = options;
    inner.max_nodes = std::nullopt;
    inner.time_limit_s = time_limit.remaining_s();
    inner.max_labels = std::min(options.max_labels, most_labels_of_classes);
    inner.max_bytes = std::max<std::size_t>(1, options.max_bytes / 2);
    inner.incumbent = {};
    const Solution found = solve(layered.problem(), inner);
    const std::vector<Stage> stages = layered.lifted(found.stages);
    if (!stages.empty()) offer(problem, options.objective, {true, 0, stages}, incumbent);
    return {found.status == Status::infeasible ? 0 : found.lower_bound_s, found.labels};
}

}  // namespace orbitsplit::planner
