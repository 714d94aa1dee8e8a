# Read by scripts beside this file: what evaluates the network that their first argument names, from the repository's root.
known="gnn, gnn_80, opt, vgg11_bn, vgg11_bn_paper, resnet18 or vgg11_bn_static"
network=${1:?$known}
case $network in
    gnn) settings=(model=gnn data=ogbg_molhiv) ;;
    gnn_80) settings=(model=gnn data=ogbg_molhiv model.epochs=80) ;; # the paper's own recipe
    opt) settings=(model=opt) ;;
    vgg11_bn_paper) settings=(experiment=paper/vgg11_bn_cifar10 data=cifar10_jpeg model.precision=bf16-mixed) ;; # likewise
    vgg11_bn | resnet18) settings=(model="$network" data=cifar10_jpeg) ;;
    vgg11_bn_static) settings=(model=vgg11_bn data=cifar10_jpeg static=magnitude static.sparsity=0.98) ;;
    *) echo "error: $network: $known" >&2; exit 1 ;;
esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."
