#include "planner/k_cycle.hpp"

#include <algorithm>
#include <limits>
#include <utility>

namespace orbitsplit::planner {

namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();

// Builds the vertices for k + 1. A vertex that remembers k nodes becomes one for each outgoing link, and remains for
// chains that have exactly k stages.
class VertexExtension {
  public:
    VertexExtension(const std::vector<char>& is_kept, const Tables& t)
        : is_kept_(is_kept), t_(t), same_(t.vertices(), -1), longer_(t.neighbour.size(), -1) {}

    void run(Tables& result) {
        for (int v = 0; v < t_.vertices(); ++v) {
            if (!is_kept_[v]) continue;
            same_[v] = static_cast<int>(origin_.size());
            origin_.push_back({v, t_.remembered[v], t_.oldest[v]});
        }
        for (int v = 0; v < t_.vertices(); ++v) {
            for (int e = t_.neighbour_start[v]; is_full(v) && e < t_.neighbour_start[v + 1]; ++e) {
                if (!is_kept_[t_.neighbour[e]]) continue;
                longer_[e] = static_cast<int>(origin_.size());
                origin_.push_back({t_.neighbour[e], t_.k_cycle + 1, t_.oldest[v]});
            }
        }
        for (const Origin& origin : origin_) add(origin);
        grown_.neighbour_start.push_back(static_cast<int>(grown_.neighbour.size()));
        for (int& vertex : result.start_vertex) vertex = vertex < 0 ? -1 : same_[vertex];
        result.k_cycle += 1;
        result.node_of = std::move(grown_.node_of);
        result.remembered = std::move(grown_.remembered);
        result.oldest = std::move(grown_.oldest);
        result.neighbour_start = std::move(grown_.neighbour_start);
        result.neighbour = std::move(grown_.neighbour);
        result.bandwidth = std::move(grown_.bandwidth);
        result.s_per_byte = std::move(grown_.s_per_byte);
        result.latency = std::move(grown_.latency);
    }

  private:
    struct Origin {
        int vertex;
        int remembered;
        int oldest;
    };

    bool is_full(int vertex) const { return is_kept_[vertex] && t_.remembered[vertex] == t_.k_cycle; }

    void add(const Origin& origin) {
        grown_.node_of.push_back(t_.node_of[origin.vertex]);
        grown_.remembered.push_back(origin.remembered);
        grown_.oldest.push_back(origin.oldest);
        grown_.neighbour_start.push_back(static_cast<int>(grown_.neighbour.size()));
        for (int e = t_.neighbour_start[origin.vertex]; e < t_.neighbour_start[origin.vertex + 1]; ++e) {
            const bool is_longer = t_.remembered[origin.vertex] == t_.k_cycle;
            const int next = is_longer ? longer_[e] : same_[t_.neighbour[e]];
            const bool repeats =
                origin.remembered > t_.k_cycle && t_.node_of[t_.neighbour[e]] == origin.oldest;
            if (next < 0 || repeats) continue;
            grown_.neighbour.push_back(next);
            grown_.bandwidth.push_back(t_.bandwidth[e]);
            grown_.s_per_byte.push_back(t_.s_per_byte[e]);
            grown_.latency.push_back(t_.latency[e]);
        }
    }

    const std::vector<char>& is_kept_;
    const Tables& t_;
    std::vector<int> same_;    // vertices: the new vertex that remembers the same nodes
    std::vector<int> longer_;  // links: the new vertex that remembers both ends
    std::vector<Origin> origin_;
    Tables grown_;
};

}  // namespace

std::vector<char> promising_vertices(const Tables& t, const Root& root, const TimeLimit& time_limit) {
    // A better plan is in some interval of every metric, and that interval's bounds on its vertices hold for it.
    std::vector<char> is_kept(t.vertices(), 1);
    for (std::size_t a = 0; a < t.metrics.size(); ++a) {
        std::vector<double> least(t.vertices(), infinity);
        for (const Interval& interval : root.intervals[a]) {
            std::vector<double> bound(t.vertices(), 0);
            for (const auto& relaxation : interval.relaxations) {
                const std::vector<double> sums = bounds_through(t, t.metrics[a], *relaxation, time_limit);
                for (int v = 0; v < t.vertices(); ++v)
                    bound[v] =
                        std::max(bound[v], sums[v] - relaxation->multiplier * t.loss_limit + interval.low);
            }
            for (int v = 0; v < t.vertices(); ++v) least[v] = std::min(least[v], bound[v]);
        }
        for (int v = 0; v < t.vertices(); ++v) {
            if (least[v] >= root.incumbent.cutoff()) is_kept[v] = 0;
        }
    }
    return is_kept;
}

double extended_link_count(const Tables& t, const std::vector<char>& is_kept) {
    double links = 0;
    for (int v = 0; v < t.vertices(); ++v) {
        for (int e = t.neighbour_start[v]; is_kept[v] && e < t.neighbour_start[v + 1]; ++e) {
            const int next = t.neighbour[e];
            if (is_kept[next]) links += 1 + t.neighbour_start[next + 1] - t.neighbour_start[next];
        }
    }
    return links;
}

void extend_vertices(const std::vector<char>& is_kept, Tables& t) {
    Tables result = t;
    VertexExtension(is_kept, t).run(result);
    t = std::move(result);
}

}  // namespace orbitsplit::planner
