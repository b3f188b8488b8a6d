// InfoNCE on NVIDIA GPUs: the ops of sslops/ops/_info_nce_op.py; formulas in tiles.h and finish.h.
// Launches of a call: unit rows of queries and keys, tiles, finish; nothing is read on the host.
#include "finish.h"
#include "rows.h"
#include "tiles_launch.h"

namespace sslops {
namespace {

using OptionalTensor = std::optional<Tensor>;

unsigned to_grid(int64_t n) { return static_cast<unsigned>(n); }

// The arguments of a call, one after another; each is read once, as reading takes it over.
class StackReader {
 public:
  explicit StackReader(StableIValue* stack) : next_(stack) {}
  template <class T>
  T next() {
    return torch::stable::detail::to<T>(*next_++);
  }

 private:
  StableIValue* next_;
};

// What the ops take: the one list of the CUDA kernels, in the order of sslops/_info_nce_args.py,
// which says what each is.
struct InfoNceArgs {
  StackReader& in;  // members are read in this order
  Tensor queries = in.next<Tensor>(), keys = in.next<Tensor>();
  OptionalTensor negatives = in.next<OptionalTensor>();
  OptionalTensor targets = in.next<OptionalTensor>();
  OptionalTensor query_ids = in.next<OptionalTensor>(), key_ids = in.next<OptionalTensor>();
  OptionalTensor row_weights = in.next<OptionalTensor>();
  OptionalTensor scale = in.next<OptionalTensor>();
  double scale_factor = in.next<double>();
  bool same_id_only = in.next<bool>(), symmetric = in.next<bool>();
  bool normalize = in.next<bool>(), stats = in.next<bool>();
  std::string plan = in.next<std::string>();
};

struct InfoNceSaved {
  Tensor loss, lse, key_loss, key_lse, similarities, dqueries, dkeys, dnegatives, dscale;
};

// Rows, ids and scale of one call.
struct Problem {
  Device device;
  ScalarType type;
  Rows x, k, y;  // queries, keys, negatives: y is k if there are none
  bool keys_are_negatives, same_id_only;
  OptionalTensor targets, query_ids, key_ids, scale;
  float scale_factor;

  explicit Problem(const InfoNceArgs& a)
      : device(a.queries),
        type(a.queries.scalar_type()),
        x(make_rows(device, a.queries, type, a.normalize)),
        k(make_rows(device, a.keys, type, a.normalize)),
        y(a.negatives ? make_rows(device, *a.negatives, type, false) : k),
        keys_are_negatives(!a.negatives),
        same_id_only(a.same_id_only),
        targets(in_order(a.targets)),
        query_ids(in_order(a.query_ids)),
        key_ids(in_order(a.key_ids)),
        scale(a.scale),
        scale_factor(static_cast<float>(a.scale_factor)) {
    STD_TORCH_CHECK(a.keys.scalar_type() == type && kind_of(a.queries) <= Kind::kHalf,
                    "info_nce: needs queries and keys of one dtype of at most 32 bits");
    STD_TORCH_CHECK(!scale || scale->scalar_type() == ScalarType::Float,
                    "info_nce: the scale must be float32");
  }

  Scale scale_of() const { return {pointer<float>(scale), scale_factor}; }
  Matrix matrix(const Rows& rows) const { return {rows.data(), rows.ld, kind_of(*rows.values)}; }
  Tensor floats(std::vector<int64_t> shape) const {
    return new_tensor(*x.values, std::move(shape), ScalarType::Float);
  }

  // The tiles of rows `a` with columns `b`; `turned`: the rows are keys or negatives.
  TileProblem tiles(const Rows& a, const Rows& b, bool turned) const {
    TileProblem p{};
    p.x = a.data();
    p.y = b.data();
    p.ld_x = a.ld;
    p.ld_y = b.ld;
    p.M = a.rows;
    p.N = b.rows;
    p.width = a.width;
    p.scale = scale_of();
    if (query_ids && key_ids) {
      p.row_ids = pointer<int64_t>(turned ? key_ids : query_ids);
      p.col_ids = pointer<int64_t>(turned ? query_ids : key_ids);
    }
    p.same_id_only = same_id_only;
    p.keys_are_negatives = keys_are_negatives;
    if (keys_are_negatives && targets)
      (turned ? p.col_targets : p.row_targets) = pointer<int64_t>(targets);
    return p;
  }
};

// The tile kernel over a problem, and where its parts lie.
struct Tiles {
  Tensor max, sum, out;
  int64_t parts, ld_out = 0;
  float lift = 0;

  template <class T>
  void run(const Problem& problem, Pass pass, TileProblem p) {
    const int width = tile_width<T>(problem.device, p.width);
    const int64_t blocks = ceil_div(p.M, kRows), chunks = ceil_div(p.width, width);
    const int64_t outputs = pass == Pass::kStats ? 1 : chunks;
    const int64_t tiles = ceil_div(p.N, tile_columns(width, sizeof(T)));
    parts = choose_parts(blocks * outputs, tiles, problem.device.processors());
    lift = kLift<T>;
    if (pass != Pass::kGradient) {
      max = problem.floats({parts, p.M});
      sum = problem.floats({parts, p.M});
      p.part_max = mutable_pointer<float>(max);
      p.part_sum = mutable_pointer<float>(sum);
    }
    if (pass != Pass::kStats) {
      ld_out = chunks * width;
      out = problem.floats({parts, p.M, ld_out});
      p.part_out = mutable_pointer<float>(out);
      p.ld_out = ld_out;
    }
    const dim3 grid(to_grid(blocks), to_grid(parts), to_grid(outputs));
    launch_tiles<T>(problem.device, pass, width, grid, p);
  }

  Tiles(const Problem& problem, Pass pass, const TileProblem& p) {
    if (problem.type == ScalarType::BFloat16)
      run<BFloat16>(problem, pass, p);
    else if (problem.type == ScalarType::Half)
      run<Half>(problem, pass, p);
    else
      run<float>(problem, pass, p);
  }
};

struct RowResults {
  Tensor loss, lse, hit;
};

// Results of the rows `a`, whose positives are rows of `b`. `dqueries` and `dscale` may be missing.
RowResults finish_forward(const Problem& problem, const Tiles& tiles, const Rows& a, const Rows& b,
                          bool stats, const Tensor* dqueries, const Tensor* dscale) {
  RowResults r{problem.floats({a.rows}), problem.floats({a.rows}),
               new_tensor(*a.values, {stats ? a.rows : 0}, ScalarType::Bool)};
  FinishForward p{};
  p.M = a.rows;
  p.D = a.D;
  p.parts = tiles.parts;
  p.ld_part = tiles.ld_out;
  p.part_max = pointer<float>(tiles.max);
  p.part_sum = pointer<float>(tiles.sum);
  p.lift = tiles.lift;
  p.scale = problem.scale_of();
  p.x = problem.matrix(a);
  p.positives = problem.matrix(b);
  p.targets = pointer<int64_t>(problem.targets);
  p.others = b.rows;
  p.norms = a.norm();
  p.loss = mutable_pointer<float>(r.loss);
  p.lse = mutable_pointer<float>(r.lse);
  if (stats) p.hit = mutable_pointer<bool>(r.hit);
  if (dqueries != nullptr) {
    p.part_out = pointer<float>(tiles.out);
    p.dqueries = mutable_pointer<float>(*dqueries);
    p.dscale_rows = mutable_pointer<float>(*dscale);
  }
  problem.device.launch(finish_forward_kernel, dim3(to_grid(a.rows)), kFinishThreads, 256, p);
  return r;
}

void info_nce_fwd(StableIValue* stack, uint64_t, uint64_t) {
  StackReader in(stack);
  const InfoNceArgs a{in};
  const bool single = a.plan == "frozen_keys";
  STD_TORCH_CHECK(single || a.plan == "recompute",
                  "info_nce: plan must be recompute or frozen_keys on a GPU");
  const Problem p(a);
  const auto none = [&] { return p.floats({0}); };
  InfoNceSaved s{none(), none(), none(), none(), none(), none(), none(), none(), none()};
  if (single) {
    s.dqueries = p.floats({p.x.rows, p.x.D});
    s.dscale = p.floats({p.x.rows});
  }
  const Tiles tiles(p, single ? Pass::kSingle : Pass::kStats, p.tiles(p.x, p.y, false));
  const RowResults rows = finish_forward(
      p, tiles, p.x, p.k, a.stats, single ? &s.dqueries : nullptr, single ? &s.dscale : nullptr);
  s.loss = rows.loss;
  s.lse = rows.lse;
  Tensor key_hit = new_tensor(a.queries, {0}, ScalarType::Bool);
  if (a.symmetric) {
    const Tiles turned(p, Pass::kStats, p.tiles(p.k, p.x, true));
    const RowResults cols = finish_forward(p, turned, p.k, p.x, a.stats, nullptr, nullptr);
    s.key_loss = cols.loss;
    s.key_lse = cols.lse;
    key_hit = cols.hit;
  }
  for (const Tensor& each : {s.loss, s.lse, s.key_loss, s.key_lse, s.similarities, s.dqueries,
                             s.dkeys, s.dnegatives, s.dscale, rows.hit, key_hit})
    *stack++ = torch::stable::detail::from(each);
}

// One side's gradient from its tiles, or from the positives alone where there are none.
struct Gradient {
  const Problem& problem;
  FinishGradient p{};
  Tensor parts;

  Gradient(const Problem& all, const Rows& rows, const Rows& others, const TileProblem* tiles,
           const Tensor& grad_scale)
      : problem(all) {
    p.rows = rows.rows;
    p.D = rows.D;
    if (tiles != nullptr) {
      const Tiles done(problem, Pass::kGradient, *tiles);
      parts = done.out;
      p.parts = done.parts;
      p.ld_part = done.ld_out;
      p.grad_scale = pointer<float>(grad_scale);
    } else {
      parts = problem.floats({rows.rows, rows.D});
      p.ld_part = rows.D;
    }
    p.part_out = mutable_pointer<float>(parts);
    p.scale = problem.scale_of();
    p.x = problem.matrix(rows);
    p.others = problem.matrix(others);
    p.other_rows = others.rows;
    p.norms = rows.norm();
  }

  void finish(const Tensor& out) {
    p.out = out.mutable_data_ptr();
    p.out_kind = kind_of(out);
    problem.device.launch(finish_gradient_kernel, dim3(to_grid(p.rows)), kFinishThreads, 256, p);
  }
};

void info_nce_bwd(StableIValue* stack, uint64_t, uint64_t) {
  StackReader in(stack);
  const Tensor grad_loss = in.next<Tensor>();
  const OptionalTensor grad_key_loss = in.next<OptionalTensor>();
  const InfoNceArgs a{in};
  const auto tensor = [&] { return in.next<Tensor>(); };
  const InfoNceSaved saved{tensor(), tensor(), tensor(), tensor(), tensor(),
                           tensor(), tensor(), tensor(), tensor()};
  const auto needs = in.next<std::vector<bool>>();
  STD_TORCH_CHECK(a.plan == "recompute", "info_nce: plan must be recompute on a GPU");
  const Problem p(a);
  const Tensor weight = in_order(grad_loss);
  const OptionalTensor key_weight = in_order(grad_key_loss);
  const bool columns = key_weight.has_value();
  const Tensor grad_scale = p.floats({1}), dscale = p.floats({});
  p.device.launch(grad_scale_kernel, dim3(1), kFinishThreads, 4 * kFinishThreads,
                  pointer<float>(weight), weight.numel(), pointer<float>(key_weight),
                  columns ? key_weight->numel() : 0, mutable_pointer<float>(grad_scale));

  // each pair's weight and lse, of its query and, with `columns`, of its key
  const auto weigh = [&](TileProblem tiles, bool turned) {
    (turned ? tiles.col_weight : tiles.row_weight) = pointer<float>(weight);
    (turned ? tiles.col_lse : tiles.row_lse) = pointer<float>(saved.lse);
    (turned ? tiles.row_weight : tiles.col_weight) = pointer<float>(key_weight);
    if (columns) (turned ? tiles.row_lse : tiles.col_lse) = pointer<float>(saved.key_lse);
    tiles.grad_scale = pointer<float>(grad_scale);
    return tiles;
  };
  const auto set_positives = [&](FinishGradient& finish, Positives which) {
    finish.positives = which;
    finish.targets = pointer<int64_t>(p.targets);
    finish.M = p.x.rows;
    finish.weight = pointer<float>(weight);
    finish.loss = pointer<float>(saved.loss);
    finish.key_weight = pointer<float>(key_weight);
    if (columns) finish.key_loss = pointer<float>(saved.key_loss);
  };

  Tensor dqueries, dkeys, dnegatives;
  if (needs[0]) {
    dqueries = new_tensor(a.queries, {p.x.rows, p.x.D}, p.type);
    const TileProblem tiles = weigh(p.tiles(p.x, p.y, false), false);
    Gradient gradient(p, p.x, p.k, &tiles, grad_scale);
    set_positives(gradient.p, Positives::kTarget);
    const Tensor dscale_rows = p.floats({p.x.rows});
    gradient.p.dscale_rows = mutable_pointer<float>(dscale_rows);
    gradient.finish(dqueries);
    p.device.launch(sum_kernel, dim3(1), kFinishThreads, 256, pointer<float>(dscale_rows), p.x.rows,
                    mutable_pointer<float>(dscale));
  } else {
    dqueries = new_tensor(a.queries, {0}, p.type);
    torch::stable::fill_(dscale, NAN);
  }
  if (needs[1]) {
    dkeys = new_tensor(a.keys, {p.k.rows, p.k.D}, p.type);
    const TileProblem tiles = weigh(p.tiles(p.k, p.x, true), true);
    Gradient gradient(p, p.k, p.x, p.keys_are_negatives ? &tiles : nullptr, grad_scale);
    set_positives(gradient.p, Positives::kAnyQuery);
    gradient.finish(dkeys);
  } else {
    dkeys = new_tensor(a.keys, {0}, p.type);
  }
  const Tensor& third = a.negatives ? *a.negatives : saved.lse;
  if (a.negatives && needs[2]) {
    dnegatives = new_tensor(third, {p.y.rows, p.y.D}, third.scalar_type());
    const TileProblem tiles = weigh(p.tiles(p.y, p.x, true), true);
    Gradient(p, p.y, p.x, &tiles, grad_scale).finish(dnegatives);
  } else {
    dnegatives = new_tensor(third, {0}, third.scalar_type());
  }
  for (const Tensor& each : {dqueries, dkeys, dnegatives, dscale})
    *stack++ = torch::stable::detail::from(each);
}

}  // namespace
}  // namespace sslops

SSLOPS_LIBRARY(m) {
  m.impl("info_nce_fwd_cuda", &sslops::info_nce_fwd);
  m.impl("info_nce_bwd_cuda", &sslops::info_nce_bwd);
}
