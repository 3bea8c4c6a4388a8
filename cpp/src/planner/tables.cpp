#include "planner/tables.hpp"

#include <algorithm>
#include <limits>
#include <numeric>

#include "planner/cost.hpp"

namespace orbitsplit::planner {

namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();

std::vector<char> node_set(int nodes, const std::vector<int>& members) {
    std::vector<char> set(nodes, 0);
    for (int node : members) set[node] = 1;
    return set;
}

// The longest stage that starts at each boundary, by memory, pins and absent weight levels. Summed from the start of
// the stage as in evaluate(), so that both agree to the last bit.
void fill_max_stop(const Problem& problem, double relief, Tables& t) {
    std::vector<int> pinned(t.layers, -1);
    for (const Pin& pin : problem.pins.layers) pinned[pin.layer] = pin.node;
    t.max_stop.assign(t.lanes() * (t.layers + 1), t.layers);
    for (int lane = 0; lane < t.lanes(); ++lane) {
        const int node = lane / t.weight_levels;
        const std::size_t row = static_cast<std::size_t>(lane % t.weight_levels) * t.layers;
        const double usable = usable_memory_bytes(problem.nodes[node]) + relief;
        for (int start = 0; start < t.layers; ++start) {
            double total = 0;
            int stop = start;
            while (stop < t.layers && (pinned[stop] < 0 || pinned[stop] == node)) {
                total += problem.layer_memory_bytes[row + stop];
                const bool is_absent = t.has_weight_levels() && problem.weight_loss[row + stop] == infinity;
                if (total > usable || is_absent) break;
                ++stop;
            }
            t.max_stop[t.lane_boundary(lane, start)] = stop;
        }
    }
}

// In fixed order no required node may be skipped: before the first stage, between two or after the last.
void fill_links(const Problem& problem, Tables& t) {
    const std::vector<char> forbidden = node_set(t.nodes, problem.pins.forbidden);
    const std::vector<char> required = node_set(t.nodes, problem.pins.required);
    std::vector<int> required_before(t.nodes + 1, 0);
    for (int n = 0; n < t.nodes; ++n) required_before[n + 1] = required_before[n] + required[n];
    for (int source = 0; source < t.nodes; ++source) {
        t.neighbour_start.push_back(static_cast<int>(t.neighbour.size()));
        for (int destination = t.is_free ? 0 : source + 1; destination < t.nodes; ++destination) {
            const std::size_t pair = static_cast<std::size_t>(source) * t.nodes + destination;
            const double bandwidth = problem.bandwidth_bytes_per_s[pair];
            if (destination == source || forbidden[source] || forbidden[destination] || bandwidth <= 0)
                continue;
            if (!t.is_free && required_before[destination] != required_before[source + 1]) break;
            t.neighbour.push_back(destination);
            t.bandwidth.push_back(bandwidth);
            t.s_per_byte.push_back(std::min(1 / bandwidth, std::numeric_limits<double>::max()));
            t.latency.push_back(problem.latency_s[pair]);
        }
        t.can_start[source] = !forbidden[source] && (t.is_free || required_before[source] == 0);
        t.can_end[source] =
            !forbidden[source] && (t.is_free || required_before[t.nodes] == required_before[source + 1]);
        if (t.is_free && required[source]) t.required.push_back(source);
    }
    t.neighbour_start.push_back(static_cast<int>(t.neighbour.size()));
    t.node_of.resize(t.nodes);
    std::iota(t.node_of.begin(), t.node_of.end(), 0);
    t.oldest = t.start_vertex = t.node_of;
    t.remembered.assign(t.nodes, 1);
}

void fill_loss(const Problem& problem, Tables& t) {
    t.loss.assign((t.layers + 1) * t.levels, 0);
    std::copy(problem.loss.begin(), problem.loss.end(), t.loss.begin() + t.levels);
    if (problem.loss_budget) {
        t.loss_limit = loss_limit(problem);
    } else {
        for (double& loss : t.loss) loss = loss < infinity ? 0 : infinity;
    }
}

// Summed from the start of the stage: losses may differ by so much that differences of prefix sums would be wrong.
void fill_stage_loss(const Problem& problem, Tables& t) {
    if (problem.weight_levels.empty()) return;
    t.stage_loss.assign(static_cast<std::size_t>(t.weight_levels) * (t.layers + 1) * (t.layers + 1), 0);
    double* losses = t.stage_loss.data();
    for (int w = 0; w < t.weight_levels; ++w) {
        const double* of_layer = problem.weight_loss.data() + static_cast<std::size_t>(w) * t.layers;
        for (int start = 0; start <= t.layers; ++start, losses += t.layers + 1) {
            double total = 0;
            for (int stop = start + 1; stop <= t.layers; ++stop) {
                if (problem.loss_budget || of_layer[stop - 1] == infinity) total += of_layer[stop - 1];
                losses[stop] = total;
            }
        }
    }
}

void fill_external(const Problem& problem, const std::optional<ExternalLink>& link,
                   std::vector<char>& is_open, std::vector<double>& occupancy, std::vector<double>& delay) {
    occupancy.assign(is_open.size(), 0);
    delay.assign(is_open.size(), 0);
    if (!link) return;
    for (std::size_t n = 0; n < is_open.size(); ++n) {
        const double bandwidth = link->bandwidth_bytes_per_s[n];
        if (bandwidth <= 0) {
            is_open[n] = 0;
            continue;
        }
        occupancy[n] = link_occupancy_s(problem, link->bytes, bandwidth, link->latency_s[n]);
        delay[n] = propagation_s(problem, link->latency_s[n]);
    }
}

std::vector<double> prefix_sums(const Problem& problem, const std::vector<double>& layer_time_s,
                                const Tables& t) {
    std::vector<double> sums(t.lanes() * (t.layers + 1), 0);
    for (int lane = 0; lane < t.lanes(); ++lane) {
        const double* times =
            layer_time_s.data() + time_index(problem, lane % t.weight_levels, lane / t.weight_levels);
        std::partial_sum(times, times + t.layers, sums.begin() + t.lane_boundary(lane, 1));
    }
    return sums;
}

void fill_phase(const Problem& problem, const std::vector<double>& layer_time_s,
                const std::vector<double>& stage_overhead_s, const std::vector<double>& cut_bytes,
                const Tables& t, PhaseTables& phase) {
    phase.compute = prefix_sums(problem, layer_time_s, t);
    phase.stage.assign(t.lanes(), 0);
    for (int lane = 0; lane < t.lanes() && !stage_overhead_s.empty(); ++lane)
        phase.stage[lane] =
            stage_overhead_s[stage_index(problem, lane % t.weight_levels, lane / t.weight_levels)];
    phase.compressed.assign((t.layers + 1) * t.levels, 0);
    phase.encode = phase.decode = phase.compressed;
    for (int i = 1; i < t.layers; ++i) {
        for (int k = 0; k < t.levels; ++k) {
            const Level& level = problem.levels[k];
            phase.compressed[t.boundary_level(i, k)] = cut_bytes[i - 1] / level.ratio;
            phase.encode[t.boundary_level(i, k)] = level.encode_s_per_byte * cut_bytes[i - 1];
            phase.decode[t.boundary_level(i, k)] = level.decode_s_per_byte * cut_bytes[i - 1];
        }
    }
}

// An upper estimate of the operations at one boundary.
std::size_t operations_of_boundary(const Tables& t) {
    return (t.neighbour.size() + static_cast<std::size_t>(t.nodes)) * t.levels;
}

// The most that encoding, and on a half-duplex node sending, can add to a stage that ends at a boundary.
void fill_growth(const Problem& problem, bool with_egress, const Tables& t, const TimeLimit& time_limit,
                 PhaseTables& phase) {
    phase.growth.assign((t.layers + 1) * t.nodes, 0);
    for (int i = 1; i < t.layers; ++i) {
        if (time_limit.must_end_after(operations_of_boundary(t))) {
            std::fill(phase.growth.begin() + t.boundary_node(i, 0),
                      phase.growth.begin() + t.boundary_node(t.layers, 0), infinity);
            break;
        }
        for (int n = 0; n < t.nodes; ++n) {
            double most = 0;
            for (int k = 0; k < t.levels; ++k) {
                if (!t.has_level(t.boundary_level(i, k))) continue;
                const double encode = phase.encode[t.boundary_level(i, k)];
                most = std::max(most, encode);
                if (!t.half_duplex[n]) continue;
                for (int e = t.neighbour_start[n]; e < t.neighbour_start[n + 1]; ++e) {
                    const double link = link_occupancy_s(problem, phase.compressed[t.boundary_level(i, k)],
                                                         t.bandwidth[e], t.latency[e]);
                    most = std::max(most, encode + link);
                }
            }
            phase.growth[t.boundary_node(i, n)] = most;
        }
    }
    for (int n = 0; n < t.nodes; ++n) {
        if (with_egress && t.half_duplex[n]) phase.growth[t.boundary_node(t.layers, n)] = t.egress[n];
    }
}

// Without a direct link from a last to a first node tokens must return along the chain.
void fill_return(const Problem& problem, Tables& t) {
    t.most_return_s.assign(t.nodes, 0);
    for (int last = 0; last < t.nodes; ++last) {
        for (int first = 0; first < t.nodes; ++first) {
            if (last == first || !t.can_start[first] || !t.can_end[last]) continue;
            const std::size_t direct = static_cast<std::size_t>(last) * t.nodes + first;
            double& most = t.most_return_s[first];
            if (problem.bandwidth_bytes_per_s[direct] <= 0) {
                most = infinity;
                t.needs_return = true;
            } else if (t.token_tracks.sum) {
                most = std::max(most, problem.latency_s[direct]);
            }
        }
    }
    t.keeps_first = t.needs_return || t.token_tracks.sum;
}

double combined(const std::vector<double>& prefill, const std::vector<double>& token, std::size_t index,
                double weight, double token_weight) {
    return token.empty() ? weight * prefill[index] : weight * prefill[index] + token_weight * token[index];
}

void fill_close(const Tables& t, const TimeLimit& time_limit, Metric& metric) {
    metric.open_max.assign(t.layers + 1, 0);
    metric.close_max.assign((t.layers + 1) * t.nodes, 0);
    for (int i = 1; i < t.layers; ++i) {
        if (time_limit.must_end_after(operations_of_boundary(t))) break;
        metric.open_max[i] = infinity;
        std::fill_n(metric.close_max.begin() + t.boundary_node(i, 0), t.nodes, infinity);
        for (int k = 0; k < t.levels; ++k) {
            if (!t.has_level(t.boundary_level(i, k))) continue;
            const double decode = combined(t.prefill.decode, t.token.decode, t.boundary_level(i, k),
                                           metric.prefill_max, metric.decode_max);
            metric.open_max[i] = std::min(metric.open_max[i], decode);
            for (int n = 0; n < t.nodes; ++n) {
                double& least = metric.close_max[t.boundary_node(i, n)];
                const double encode = metric.encode_max[t.boundary_level(i, k)];
                if (!t.half_duplex[n]) least = std::min(least, encode);
                for (int e = t.neighbour_start[n]; t.half_duplex[n] && e < t.neighbour_start[n + 1]; ++e) {
                    least = std::min(
                        least, encode + metric.compressed_max[t.boundary_level(i, k)] * t.s_per_byte[e] +
                                   metric.latency_max * t.latency[e]);
                }
            }
        }
    }
    for (int n = 0; n < t.nodes; ++n) {
        metric.close_max[t.boundary_node(t.layers, n)] = t.half_duplex[n] ? metric.egress_max[n] : 0;
    }
}

void fill_metric(const Problem& problem, const Tables& t, const TimeLimit& time_limit, Metric& metric) {
    metric.latency_sum = metric.prefill_sum + metric.decode_sum;
    metric.latency_max = problem.latency_occupies_link ? metric.prefill_max + metric.decode_max : 0;
    for (std::size_t i = 0; i < t.prefill.compute.size(); ++i) {
        metric.compute_sum.push_back(
            combined(t.prefill.compute, t.token.compute, i, metric.prefill_sum, metric.decode_sum));
        metric.compute_max.push_back(
            combined(t.prefill.compute_max(), t.token.compute, i, metric.prefill_max, metric.decode_max));
        const std::size_t lane = i / (t.layers + 1);
        metric.start_sum.push_back(metric.compute_sum[i] - combined(t.prefill.stage, t.token.stage, lane,
                                                                    metric.prefill_sum, metric.decode_sum));
        metric.start_max.push_back(metric.compute_max[i] - combined(t.prefill.stage, t.token.stage, lane,
                                                                    metric.prefill_max, metric.decode_max));
    }
    for (std::size_t i = 0; i < t.prefill.compressed.size(); ++i) {
        metric.compressed_sum.push_back(
            combined(t.prefill.compressed, t.token.compressed, i, metric.prefill_sum, metric.decode_sum));
        metric.compressed_max.push_back(
            combined(t.prefill.compressed, t.token.compressed, i, metric.prefill_max, metric.decode_max));
        metric.code_sum.push_back(
            combined(t.prefill.encode, t.token.encode, i, metric.prefill_sum, metric.decode_sum) +
            combined(t.prefill.decode, t.token.decode, i, metric.prefill_sum, metric.decode_sum));
        metric.encode_max.push_back(
            combined(t.prefill.encode, t.token.encode, i, metric.prefill_max, metric.decode_max));
    }
    for (int n = 0; n < t.nodes; ++n) {
        metric.ingress_sum.push_back(metric.prefill_sum * (t.ingress[n] + t.ingress_delay[n]));
        metric.ingress_max.push_back(metric.prefill_max * t.ingress[n]);
        metric.egress_sum.push_back(metric.prefill_sum * (t.egress[n] + t.egress_delay[n]));
        metric.egress_max.push_back(metric.prefill_max * t.egress[n]);
    }
    fill_close(t, time_limit, metric);
}

void fill_weights(const Problem& problem, Objective objective, Tables& t) {
    const double more_batches = static_cast<double>(problem.micro_batches - 1);
    const double steps = token_steps(problem);
    const double by_token = 1 / problem.tokens_per_step;
    const double groups = static_cast<double>(group_count(problem));
    if (objective == Objective::throughput && t.generates) {
        t.weights.bottleneck = by_token;
    } else if (objective == Objective::throughput) {
        t.weights.prefill_max = 1;
    } else if (objective == Objective::time_per_token) {
        t.weights = {0, 0, by_token, by_token * groups};
    } else if (objective == Objective::latency && t.generates) {
        t.weights = {1, more_batches, steps, steps * groups};
    } else {
        t.weights = {1, more_batches, 0, 0};
    }
    // A round trip includes its longest occupancy: unless the maximum has more weight, the round trip is the step.
    t.tracks = {t.weights.prefill_sum > 0, t.weights.prefill_max > 0};
    t.token_tracks = {t.weights.round_trip > 0, t.weights.bottleneck > t.weights.round_trip};
}

void fill_metrics(const Problem& problem, const TimeLimit& time_limit, Tables& t) {
    Metric metric;
    metric.prefill_sum = t.weights.prefill_sum;
    metric.prefill_max = t.weights.prefill_max;
    if (t.token_tracks.sum || !t.token_tracks.max) {
        t.metrics.push_back(metric);
        t.metrics.back().decode_sum = t.weights.round_trip;
    }
    if (t.token_tracks.max) {
        t.metrics.push_back(metric);
        t.metrics.back().decode_max = t.weights.bottleneck;
    }
    for (Metric& each : t.metrics) fill_metric(problem, t, time_limit, each);
}

// Of a stage of all layers on a node, at its fastest weight level.
double least_time(const Tables& t, int node) {
    double least = infinity;
    for (int w = 0; w < t.weight_levels; ++w)
        least = std::min(least, t.prefill.compute[t.lane_boundary(t.lane(node, w), t.layers)] +
                                    t.prefill.stage[t.lane(node, w)]);
    return least;
}

// In free order the bounds remember which nodes of the ng-set were visited; each node doubles their work. Required
// nodes come first, then the fastest, which a relaxation would repeat most often.
void choose_ng_set(int max_ng_size, double most_operations, Tables& t) {
    if (!t.is_free || !t.keys_are_exact) return;
    std::vector<int> ranked(t.nodes);
    std::iota(ranked.begin(), ranked.end(), 0);
    const auto is_required = [&](int n) {
        return std::binary_search(t.required.begin(), t.required.end(), n);
    };
    std::sort(ranked.begin(), ranked.end(), [&](int a, int b) {
        if (is_required(a) != is_required(b)) return is_required(a);
        const double time_a = least_time(t, a);
        const double time_b = least_time(t, b);
        return time_a != time_b ? time_a < time_b : a < b;
    });
    double operations = static_cast<double>(t.layers) * static_cast<double>(t.neighbour.size());
    for (int n = 0; n < t.nodes; ++n) {
        for (int start = 0; start < t.layers; ++start) operations += longest_stop(t, n, start) - start;
    }
    if (t.count_step > 0) operations *= t.most_stages;
    for (int n : ranked) {
        operations *= 2;
        if (operations > most_operations || t.ng_size >= max_ng_size) break;
        if (is_required(n)) t.required_ng |= 1u << t.ng_size;
        t.ng_bit[n] = t.ng_size++;
    }
}

// The keys that tell sets of nodes apart by one word. Of many nodes they are random (Zobrist hashing, with a sum
// instead of XOR): equal sets have equal keys, and where the converse matters the chains themselves are compared.
void fill_node_keys(const Options& options, Tables& t) {
    if (!t.is_free) return;
    t.keys_are_exact = t.nodes <= options.max_bitset_nodes;
    std::uint64_t drawn = 0;
    for (int n = 0; n < t.nodes; ++n) {
        drawn += 0x9E3779B97F4A7C15u;  // splitmix64 (Steele, Lea, Flood, OOPSLA 2014)
        std::uint64_t mixed = (drawn ^ drawn >> 30) * 0xBF58476D1CE4E5B9u;
        mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EBu;
        t.node_key.push_back(t.keys_are_exact ? std::uint64_t{1} << n : mixed ^ mixed >> 31);
    }
}

void fill_visited_sets(const Options& options, double most_operations, Tables& t) {
    t.ng_bit.assign(t.nodes, -1);
    t.most_stages = std::numeric_limits<unsigned>::max();
    const bool is_limited = options.max_nodes && *options.max_nodes < std::min(t.nodes, t.layers);
    if (is_limited) {
        t.most_stages = static_cast<unsigned>(*options.max_nodes);
        t.count_step = 1;
    }
    choose_ng_set(options.max_ng_size, most_operations, t);
    t.visited_sets <<= t.ng_size;
    if (!is_limited) return;
    t.count_step <<= t.ng_size;
    t.visited_sets *= t.most_stages + 1;
}

}  // namespace

Tables make_tables(const Problem& problem, const Options& options, const TimeLimit& time_limit,
                   double memory_relief_bytes, double most_operations) {
    Tables t;
    t.layers = static_cast<int>(problem.layers.size());
    t.nodes = static_cast<int>(problem.nodes.size());
    t.levels = static_cast<int>(problem.levels.size());
    t.weight_levels = static_cast<int>(weight_level_count(problem));
    t.generates = generates(problem);
    t.is_free = problem.order == Order::free;
    t.threads = options.threads;
    fill_weights(problem, options.objective, t);
    t.propagates = propagation_s(problem, 1);
    t.can_start.assign(t.nodes, 0);
    t.can_end.assign(t.nodes, 0);
    for (const ProblemNode& node : problem.nodes) t.half_duplex.push_back(node.half_duplex);
    fill_loss(problem, t);
    fill_stage_loss(problem, t);
    fill_max_stop(problem, memory_relief_bytes, t);
    fill_links(problem, t);
    fill_external(problem, problem.ingress, t.can_start, t.ingress, t.ingress_delay);
    fill_external(problem, problem.egress, t.can_end, t.egress, t.egress_delay);
    fill_phase(problem, problem.layer_time_s, problem.stage_overhead_s, problem.cut_bytes, t, t.prefill);
    if (!problem.layer_earlier_time_s.empty())
        t.prefill.earlier_compute = prefix_sums(problem, problem.layer_earlier_time_s, t);
    fill_growth(problem, true, t, time_limit, t.prefill);
    if (t.generates) {
        fill_phase(problem, problem.layer_decode_time_s, problem.stage_decode_overhead_s,
                   problem.cut_decode_bytes, t, t.token);
        fill_growth(problem, false, t, time_limit, t.token);
        fill_return(problem, t);
    }
    fill_metrics(problem, time_limit, t);
    fill_node_keys(options, t);
    fill_visited_sets(options, most_operations, t);
    return t;
}

}  // namespace orbitsplit::planner
